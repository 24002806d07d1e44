"""How a request wants its tokens chosen, checked; and what may come with a token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from armillary.errors import ArmillaryError, Code
from armillary.runtime.grammar import Grammar

MAX_LOGPROBS = 20
MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """What the model thought of a token, before penalties, biases and temperature changed the odds.

    Attributes:
        logprob: natural logarithm of the token's probability.
        top: (token, logprob) of the most probable tokens, best first, as many as were asked for.
    """

    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one request are chosen.

    The order is that of transformers: logit bias, repetition, presence and frequency penalties, the ban on
    stop tokens, temperature, top-k, top-p, min-p, and one draw.

    Attributes:
        temperature: 0 takes the most probable token, the lowest id among equals; 1 the model's own odds; up to 2.
        top_k: draw from so many most probable tokens, and those tied with the last of them; 0: no limit.
        top_p: draw from the most probable tokens that together have this probability, and those tied with
            the last of them; above 0, at most 1.
        min_p: draw from tokens at least this share as probable as the most probable one; 0 to 1.
        repetition_penalty: divides positive and multiplies negative logits of all tokens that occurred in
            prompt or answer; above 0, 1 is none.
        presence_penalty: taken off the logits of tokens that occurred in the answer; -2 to 2.
        frequency_penalty: the same, once per occurrence; -2 to 2.
        logit_bias: token id -> added to its logit; -100 to 100.
        seed: the same seed, prompt and parameters give the same tokens beside any neighbours. None: the
            caller draws one (it must not stay None if the choice shall be repeatable).
        logprobs: how many alternatives each generated token comes with; None: no logprobs at all.
        prompt_logprobs: the same for the tokens of the prompt.
        stop: strings that end the text; they are not part of it.
        stop_token_ids: tokens that end a sequence, beside the model's own.
        min_tokens: no stop token can be chosen before so many were generated.
        max_tokens: generated tokens at most; None: what the context leaves, or the caller's default.
        ignore_eos: the model's own stop tokens do not end a sequence.
        n: how many answers.
        grammar: what the answer must be (`compile_grammar`); it ends when it is complete, so neither
            `ignore_eos` nor `min_tokens` goes with it. A stop string may still end it earlier.

    Raises:
        ArmillaryError: INVALID_REQUEST, naming the field.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    max_tokens: int | None = None
    ignore_eos: bool = False
    n: int = 1
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        def store(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        # What clients write for "nothing": objects, because callers are not all type-checked.
        given: dict[str, object] = {name: getattr(self, name) for name in ("top_k", "stop", "stop_token_ids")}
        if given["top_k"] == -1:
            store("top_k", 0)
        if isinstance(given["stop"], str):
            store("stop", (given["stop"],))
        for name, empty in (("stop", ()), ("stop_token_ids", ()), ("logit_bias", {})):
            if getattr(self, name) is None:
                store(name, empty)
        _number("temperature", self.temperature, 0, 2)
        _integer("top_k", self.top_k, 0)
        _number("top_p", self.top_p, 0, 1, above=True)
        _number("min_p", self.min_p, 0, 1)
        _number("repetition_penalty", self.repetition_penalty, 0, 100, above=True)
        _number("presence_penalty", self.presence_penalty, -2, 2)
        _number("frequency_penalty", self.frequency_penalty, -2, 2)
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**64 - 1)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            _integer("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        _integer("n", self.n, 1, MAX_CHOICES)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1)
        _integer("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _refusal("min_tokens", f"at most max_tokens ({self.max_tokens})", self.min_tokens)
        flag: object = self.ignore_eos
        if not isinstance(flag, bool):
            raise _refusal("ignore_eos", "true or false", flag)
        self._check_bias()
        self._check_stops()
        self._check_grammar()

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0

    def _check_bias(self) -> None:
        given: object = self.logit_bias
        if not isinstance(given, Mapping):
            raise _refusal("logit_bias", "a mapping from token id to bias", given)
        for token, bias in given.items():
            _integer("logit_bias", token, 0, what="a token id")
            _number("logit_bias", bias, -100, 100)
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    def _check_grammar(self) -> None:
        given: object = self.grammar
        if given is None:
            return
        if not isinstance(given, Grammar):
            raise _refusal("grammar", "one that compile_grammar has made", given)
        # Both forbid the end of an answer where the grammar knows no other token.
        if self.ignore_eos:
            raise _refusal("ignore_eos", "false with a grammar, whose answers end when they are complete", True)
        if self.min_tokens:
            raise _refusal("min_tokens", "0 with a grammar, whose answers end when they are complete", self.min_tokens)

    def _check_stops(self) -> None:
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple, set, frozenset)):
                raise _refusal(name, "a list", value)
            object.__setattr__(self, name, tuple(value))
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, 0, what="token ids")
        if len(self.stop) > MAX_STOPS:
            raise _refusal("stop", f"at most {MAX_STOPS} strings", len(self.stop))
        text: object
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise _refusal("stop", "strings of at least one character", text)
            if len(text) > MAX_STOP_LENGTH:
                raise _refusal("stop", f"strings of at most {MAX_STOP_LENGTH} characters", len(text))


def check_vocabulary(params: SamplingParams, vocab_size: int) -> None:
    """Refuse token ids that the model does not have.

    Raises:
        ArmillaryError: INVALID_REQUEST, naming the field.
    """
    for name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
        for token in ids:
            if token >= vocab_size:
                raise _refusal(name, f"token ids below {vocab_size}, the size of the vocabulary", token)


def _integer(name: str, value: object, low: int, high: int | None = None, what: str = "an integer") -> None:
    if isinstance(value, int) and not isinstance(value, bool) and value >= low and (high is None or value <= high):
        return
    raise _refusal(name, f"{what} from {low} to {high}" if high is not None else f"{what}, at least {low}", value)


def _number(name: str, value: object, low: float, high: float, above: bool = False) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        if low < value <= high or (value == low and not above):
            return
    bounds = f"a number above {low} and at most {high}" if above else f"a number from {low} to {high}"
    raise _refusal(name, bounds, value)


def _refusal(name: str, wanted: str, given: object) -> ArmillaryError:
    return ArmillaryError(Code.INVALID_REQUEST, f"{name} must be {wanted}, given {given!r:.60}", name)


GREEDY = SamplingParams(temperature=0.0)
"""What the executor takes for a request that says nothing."""


GREEDY = SamplingParams(temperature=0.0)
"""What the executor takes for a request that says nothing."""
