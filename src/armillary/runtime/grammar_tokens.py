"""A model's vocabulary as grammars see it: the bytes of every token."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING

from armillary.errors import ArmillaryError, Code

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from armillary.models.tokenizer import Tokenizer

_PROBES = ('{"name": "', "Ab c", '", "', "  x", "é\n", "123, 4", " true}")


MAX_REMEMBERED = 64
"""Compiled grammars kept for requests that bring the same one again."""
MAX_REMEMBERED_SOURCE = 512 * 1024
"""Characters of what they were compiled from, together. Measured over a vocabulary of bytes (resident memory, means of
six grammars), one takes 0.14 MiB where it is small, and where it is large 33 (an enumeration) to 160 times (a schema of
patterns) its source: some 80 MiB at most, where 64 of the longest would be gigabytes. What a request adds to its own
copy goes with it."""


class GrammarTokens:
    """The vocabulary of one tokenizer, prepared for matchers.

    Attributes:
        size: ids are below this.
        ends: tokens that end a text, in order; grammars allow them where a text is complete.
        certain: whether a text has one tokenisation wherever it stands, so that tokens which a grammar forces
            may be written without asking the model.
        handle: what llguidance made of it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        from llguidance import LLTokenizer

        self.size = tokenizer.vocab_size
        self.ends = sorted(end for end in tokenizer.eos_ids if end < self.size)
        self.certain = all(_faithful(tokenizer, text) for text in _PROBES)
        self.handle: LLTokenizer = LLTokenizer(_Spelling(tokenizer), eos_token=self.ends)  # type: ignore[arg-type]
        self._compiled: OrderedDict[tuple[str, str], object] = OrderedDict()
        self._lock = threading.Lock()

    def recall(self, key: tuple[str, str]) -> object:
        """What was remembered under a key of late; None if nothing was."""
        with self._lock:
            found = self._compiled.get(key)
            if found is not None:
                self._compiled.move_to_end(key)
            return found

    def remember(self, key: tuple[str, str], grammar: object) -> None:
        """Keep a compiled grammar, until enough others have come.

        Args:
            key: kind and source.
        """
        with self._lock:
            self._compiled[key] = grammar
            self._compiled.move_to_end(key)
            held = sum(len(source) for _, source in self._compiled)
            while len(self._compiled) > MAX_REMEMBERED or (held > MAX_REMEMBERED_SOURCE and len(self._compiled) > 1):
                (_, source), _ = self._compiled.popitem(last=False)
                held -= len(source)


class _Spelling:
    """The tokenizer in the shape that llguidance takes from Python."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = weakref.ref(tokenizer)  # what knows the tokenizer must not keep it alive
        self.eos_token_id = min(tokenizer.eos_ids)
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids)
        self._ids: dict[bytes, int] = {}
        for token, data in enumerate(self.tokens):
            if data and token not in tokenizer.special_ids:
                self._ids.setdefault(data, token)
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text: the tokenizer's, or the longest that fit where it would write other bytes."""
        data = text.encode()
        tokenizer = self._tokenizer()
        ids = [] if tokenizer is None else tokenizer.encode_inside(text)
        if b"".join(self.tokens[token] for token in ids) == data:
            return ids
        ids = []
        start = 0
        while start < len(data):
            for length in range(min(self._longest, len(data) - start), 0, -1):
                found = self._ids.get(data[start : start + length])
                if found is not None:
                    ids.append(found)
                    start += length
                    break
            else:
                return ids  # a byte without a token: the grammar finds out by itself
        return ids


def _faithful(tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text inside another comes back byte for byte from its tokens."""
    return b"".join(map(tokenizer.token_bytes, tokenizer.encode_inside(text))) == text.encode()


_known: weakref.WeakKeyDictionary[Tokenizer, GrammarTokens] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def tokens_of(tokenizer: Tokenizer, param: str = "grammar") -> GrammarTokens:
    """The vocabulary of a tokenizer, prepared at the first call: a second for a hundred thousand tokens.

    Raises:
        ArmillaryError: INVALID_REQUEST where the model has no token that could end an answer.
    """
    if not any(end < tokenizer.vocab_size for end in tokenizer.eos_ids):
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            "structured output needs a model with an end-of-text token, and this one names none, so it could "
            "not say that an answer is complete",
            param,
        )
    with _lock:
        found = _known.get(tokenizer)
        if found is None:
            found = _known[tokenizer] = GrammarTokens(tokenizer)
        return found
