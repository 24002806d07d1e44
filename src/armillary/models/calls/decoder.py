"""One JSON object, decoded as it arrives, in pieces of any size.

Models are not strict about JSON, and some write notations of their own that mean the same. What comes out is
JSON that any parser accepts, or the decoder has failed at the very character from which it cannot be.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

MAX_DEPTH = 128
"""Objects and arrays within each other. Deeper than any schema, shallower than any client's JSON parser."""
MAX_NUMBER = 1000
"""Characters of a number. Python's own parser refuses integers of more than 4,300 digits."""

_PLAIN = {"true": "true", "false": "false", "null": "null"}


@dataclass(frozen=True, slots=True)
class Notation:
    """How objects are written.

    Attributes:
        quote: what begins and ends a string. With any other than `"` there are no escapes within.
        bare_keys: keys of objects are words without quotes.
        words: spellings of true, false and null.
    """

    quote: str = '"'
    bare_keys: bool = False
    words: dict[str, str] = field(default_factory=lambda: dict(_PLAIN))


JSON = Notation()

_SPACE = " \t\n\r"
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_NUMBER_RUN = re.compile(r"[-+.0-9eE]+")
_WORD_RUN = re.compile(r"[A-Za-z]+")
_KEY_RUN = re.compile(r"[\w.-]+")
_STRING_RUN = re.compile(r'[^"\\\x00-\x1f]+')
_HEX = frozenset("0123456789abcdefABCDEF")


class ObjectDecoder:
    """One object. Everything that `push` takes is a prefix of an object, or an object.

    Args:
        bounded: neither deeper than `MAX_DEPTH` nor with numbers longer than `MAX_NUMBER`. Off for what a grammar has
            enforced, which bounds neither: what it let the model write is read.

    Attributes:
        complete: the object is closed.
        failed: no continuation can make what came so far, with the next character, an object.
        members: the object's own members that are complete: key -> value, as JSON text.
        key: of the member whose value is being read, or None.
    """

    __slots__ = (
        "_after", "_bounded", "_escape", "_matched", "_notation", "_run", "_stack", "_text", "complete", "failed",
        "key", "members",
    )  # fmt: skip

    def __init__(self, notation: Notation = JSON, bounded: bool = True) -> None:
        self._notation = notation
        self._bounded = bounded
        self._stack: list[str] = []
        self._after = "object"
        """What may come next: object, value, item, key, first key, colon, more; or what is underway: string,
        name (a key), number, word."""
        self._run: list[str] = []
        """The characters of a key, number or word that is underway."""
        self._escape = ""
        self._matched = 0
        """Characters of a long quote that have matched."""
        self._text: list[str] = []
        self.complete = False
        self.failed = False
        self.members: dict[str, str] = {}
        self.key: str | None = None

    @classmethod
    def of_member(cls, key: str, notation: Notation = JSON, bounded: bool = True) -> ObjectDecoder:
        """A decoder that takes the value of one member alone, and is done when `members` has it."""
        decoder = cls(notation, bounded)
        decoder._stack, decoder._after, decoder.key = ["{"], "value", key
        return decoder

    @property
    def value(self) -> str:
        """JSON text so far of the member `key`; empty before its first character."""
        if len(self._text) > 1:
            self._text = ["".join(self._text)]
        return self._text[0] if self._text else ""

    def push(self, text: str, at: int = 0) -> int:
        """Take characters from `text[at:]`; returns the place of the first one that was not taken.

        Stops where the object is complete or has failed, and also after each own key and own member, so that
        the caller can look at it before anything else is taken.
        """
        end = len(text)
        known, key = len(self.members), self.key
        while at < end and not (self.failed or self.complete):
            at = self._step(text, at)
            if self.complete or len(self.members) != known or self.key != key:
                break
        return at

    # ---------------------------------------------------------------- one run of characters

    def _step(self, text: str, at: int) -> int:
        match self._after:
            case "string" | "name":
                return self._in_string(text, at)
            case "number" | "word" | "bare":
                return self._in_run(text, at)
        character = text[at]
        if character in _SPACE:
            self._emit_inner(character)
            return at + 1
        return self._structure(text, at, character)

    def _structure(self, text: str, at: int, character: str) -> int:
        after, stack = self._after, self._stack
        if after == "object":
            if character != "{":
                return self._fail(at)
            self._open("{")
        elif after in ("value", "item"):
            if character == "]" and after == "item":
                return self._close(at, "[", character)
            return self._value(text, at, character)
        elif after in ("key", "first key"):
            if character == "}" and after == "first key":
                return self._close(at, "{", character)
            return self._name(at, character)
        elif after == "colon":
            if character != ":":
                return self._fail(at)
            self._emit_inner(":")
            self._after = "value"
        else:  # more
            if character == ",":
                self._emit_inner(",")
                self._after = "key" if stack[-1] == "{" else "value"
            elif character == "}":
                return self._close(at, "{", character)
            elif character == "]":
                return self._close(at, "[", character)
            else:
                return self._fail(at)
        return at + 1

    def _value(self, text: str, at: int, character: str) -> int:
        if character in "{[":
            if self._bounded and len(self._stack) >= MAX_DEPTH:
                return self._fail(at)
            self._open(character)
        elif character == self._notation.quote[0]:
            if len(self._notation.quote) == 1:
                self._emit('"')
            self._after, self._matched = "string", 1
            if len(self._notation.quote) > 1:
                self._run = [""]  # the opening quote itself is still to be matched
        elif character == "-" or (character.isascii() and character.isdigit()):
            self._after, self._run = "number", []
            return at
        elif character.isascii() and character.isalpha():
            self._after, self._run = "word", []
            return at
        else:
            return self._fail(at)
        return at + 1

    def _name(self, at: int, character: str) -> int:
        if self._notation.bare_keys:
            if _KEY_RUN.match(character) is None:
                return self._fail(at)
            self._after, self._run = "bare", []
            return at
        if character != '"':
            return self._fail(at)
        self._emit_inner('"')
        self._after, self._run = "name", []
        return at + 1

    def _open(self, bracket: str) -> None:
        if self._stack:
            self._emit(bracket)
        self._stack.append(bracket)
        self._after = "first key" if bracket == "{" else "item"

    def _close(self, at: int, bracket: str, character: str) -> int:
        if self._stack[-1] != bracket:
            return self._fail(at)
        self._stack.pop()
        if not self._stack:
            self.complete = True
        else:
            self._emit(character)
            self._ended()
        return at + 1

    # ---------------------------------------------------------------- strings, keys, numbers, words

    def _in_string(self, text: str, at: int) -> int:
        if len(self._notation.quote) > 1 and self._after == "string":
            return self._in_long_string(text, at)
        character = text[at]
        if self._escape:
            return self._in_escape(at, character)
        if character == "\\":
            self._escape = "\\"
        elif character == '"':
            self._string_ended()
        elif character < " ":
            self._put(json.dumps(character)[1:-1])  # line breaks in strings: forbidden, and often written
        else:
            run = _STRING_RUN.match(text, at)
            assert run is not None  # noqa: S101  the three cases before are all that the pattern leaves out
            self._put(run[0])
            return run.end()
        return at + 1

    def _in_escape(self, at: int, character: str) -> int:
        escape = self._escape + character
        if len(escape) == 2:
            if character not in '"\\/bfnrtu':
                return self._fail(at)
        elif character not in _HEX:
            return self._fail(at)
        if escape[1] == "u" and len(escape) < 6:
            self._escape = escape
        else:
            self._put(escape)
            self._escape = ""
        return at + 1

    def _in_long_string(self, text: str, at: int) -> int:
        """Strings between quotes of several characters. The first character occurs once in each of them."""
        quote, character = self._notation.quote, text[at]
        if character == quote[self._matched]:
            self._matched += 1
            if self._matched == len(quote):
                self._matched = 0
                if self._run:  # that was the opening one
                    self._run = []
                    self._emit('"')
                else:
                    self._string_ended()
            return at + 1
        if self._run:
            return self._fail(at)
        if self._matched:
            self._put(json.dumps(quote[: self._matched], ensure_ascii=False)[1:-1])
            self._matched = 0
            return at
        stop = text.find(quote[0], at)
        run = text[at:] if stop < 0 else text[at:stop]
        self._put(json.dumps(run, ensure_ascii=False)[1:-1])
        return at + len(run)

    def _put(self, text: str) -> None:
        """More of the string that is underway."""
        if self._after == "name":
            self._run.append(text)
            self._emit_inner(text)
        else:
            self._emit(text)

    def _string_ended(self) -> None:
        if self._after == "string":
            self._emit('"')
            self._ended()
            return
        self._emit_inner('"')
        self._name_ended(json.loads(f'"{"".join(self._run)}"'))

    def _name_ended(self, name: str) -> None:
        self._after = "colon"
        if len(self._stack) == 1:
            if name in self.members:
                self.failed = True
            self.key, self._text = name, []

    def _in_run(self, text: str, at: int) -> int:
        """A number, a word or a bare key: as many characters as can be part of it; then it is judged."""
        pattern = {"number": _NUMBER_RUN, "word": _WORD_RUN, "bare": _KEY_RUN}[self._after]
        run = pattern.match(text, at)
        if run is not None:
            self._run.append(run[0])
            return run.end()
        whole = "".join(self._run)
        if self._after == "bare":
            self._emit_inner(json.dumps(whole, ensure_ascii=False))
            self._name_ended(whole)
            return at
        if self._after == "number":
            fits = not self._bounded or len(whole) <= MAX_NUMBER
            spelled = whole if fits and _NUMBER.fullmatch(whole) else None
        else:
            spelled = self._notation.words.get(whole)
        if spelled is None:
            return self._fail(at)
        self._emit(spelled)
        self._ended()
        return at

    # ---------------------------------------------------------------- inside

    def _ended(self) -> None:
        """A value is complete."""
        self._after = "more"
        if len(self._stack) == 1 and self.key is not None:
            self.members[self.key] = self.value
            self.key, self._text = None, []

    def _emit(self, text: str) -> None:
        self._text.append(text)

    def _emit_inner(self, text: str) -> None:
        """Punctuation and keys, which belong to a member's value unless they are the object's own."""
        if len(self._stack) > 1:
            self._text.append(text)

    def _fail(self, at: int) -> int:
        self.failed = True
        return at
