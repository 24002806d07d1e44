"""From tokens to text, one token at a time: whole characters only, and nothing that may begin a stop string."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from armillary.models.tokenizer import Tokenizer


class StopMatcher:
    """Looks for one stop string in text that arrives a character at a time (Knuth, Morris and Pratt 1977).

    `matched` is the length of the longest suffix of the text so far that begins the stop string.
    """

    __slots__ = ("_fallback", "matched", "stop")

    def __init__(self, stop: str) -> None:
        if not stop:
            raise ValueError("a stop string must have at least one character")
        self.stop = stop
        self.matched = 0
        self._fallback = _fallbacks(stop)

    def push(self, character: str) -> bool:
        """Whether the stop string is complete with this character."""
        stop, matched = self.stop, self.matched
        if matched == len(stop):
            matched = self._fallback[matched - 1]
        while matched and stop[matched] != character:
            matched = self._fallback[matched - 1]
        if stop[matched] == character:
            matched += 1
        self.matched = matched
        return matched == len(stop)


def _fallbacks(stop: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that also ends it."""
    lengths = [0] * len(stop)
    length = 0
    for position in range(1, len(stop)):
        while length and stop[length] != stop[position]:
            length = lengths[length - 1]
        if stop[length] == stop[position]:
            length += 1
        lengths[position] = length
    return lengths


class TextStream:
    """The text of one choice, as its tokens arrive.

    The pieces that `push` and `finish` return, joined, are the text of all tokens up to the first stop string
    (the one that is complete first; of several that end together, the longest). The cost of a token does not
    depend on how many came before it. U+FFFD comes out only for bytes that no later token can make valid.

    Args:
        tokenizer: whose tokens.
        stop: stop strings, none empty.
        continues: the text goes on from a prompt that is shown with it, so a leading space stays.
        skip_special: leave control tokens out of the text.
        shown: control tokens that stay in the text all the same.
        min_tokens: no stop string ends before this many tokens were pushed.

    Attributes:
        stopped: the stop string that ended the text, or None.
        tokens: how many tokens were pushed.
    """

    __slots__ = (
        "_decoder", "_first", "_held", "_matchers", "_min_tokens", "_skip", "_strip", "_tokenizer", "stopped", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        continues: bool = False,
        skip_special: bool = True,
        shown: frozenset[int] = frozenset(),
        min_tokens: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._skip = tokenizer.special_ids - shown if skip_special else frozenset()
        self._strip = tokenizer.strips_first_space and not continues
        self._matchers = [StopMatcher(text) for text in stop]
        self._first = re.compile(f"[{re.escape(''.join(text[0] for text in stop))}]") if stop else None
        self._held = ""
        self._min_tokens = min_tokens
        self.stopped: str | None = None
        self.tokens = 0

    def push(self, token: int) -> str:
        """Take the next token; returns the text that is certain now. After a stop: always empty."""
        if self.stopped is not None:
            return ""
        self.tokens += 1
        if token in self._skip:
            return ""
        return self._certain(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def finish(self) -> str:
        """The rest: what was held back, and U+FFFD for a character that stayed incomplete."""
        if self.stopped is not None:
            return ""
        rest = self._certain(self._decoder.decode(b"", True))
        if self.stopped is None:
            rest, self._held = rest + self._held, ""
        return rest

    def _certain(self, text: str) -> str:
        """Of held and new text, all that cannot begin a stop string any more."""
        if self._strip and text:
            self._strip = False
            text = text[1:] if text.startswith(" ") else text
        if self._first is None or self.tokens < self._min_tokens:
            return text
        if not self._held and self._first.search(text) is None:  # no stop string has begun, and none begins here
            return text
        known = len(self._held)
        joined = self._held + text
        for position, character in enumerate(text, known + 1):
            complete = [matcher.stop for matcher in self._matchers if matcher.push(character)]
            if complete:
                self.stopped = max(complete, key=len)
                self._held = ""
                return joined[: position - len(self.stopped)]
        keep = max(matcher.matched for matcher in self._matchers)
        self._held = joined[len(joined) - keep :]
        return joined[: len(joined) - keep]
