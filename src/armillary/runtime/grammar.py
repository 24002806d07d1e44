"""What a grammar may demand of an answer: JSON, a schema, a regular expression, a choice, or a Lark grammar.

A grammar is compiled before its request is admitted, with limits on its size and on the work that it may
cause (llguidance, https://github.com/guidance-ai/llguidance). What cannot be compiled is refused: an answer is
never left unconstrained.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from armillary.errors import ArmillaryError, Code
from armillary.runtime.grammar_tokens import GrammarTokens, tokens_of
from armillary.runtime.grammar_words import refusal

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from armillary.models.tokenizer import Tokenizer

Kind = Literal["json_object", "json_schema", "regex", "choice", "lark"]
KINDS: tuple[str, ...] = get_args(Kind)

MAX_SOURCE = 128 * 1024
"""Characters of the longest grammar, a schema counted as compact JSON."""
MAX_DEPTH = 64
"""Levels of nesting in a schema."""
MAX_BRACKETS = 96
"""Brackets within brackets in a regular expression or a Lark grammar."""
MAX_CHOICES = 4096
MAX_SECONDS = 5.0
"""How long a grammar may take to compile."""
MAX_FIRST_SECONDS = 0.25
"""Processor time of the first step of a grammar."""
MAX_STATES = 50_000
"""States of the automaton of a grammar, each of 1 or 2 KB."""
MAX_COMPILERS = 4
"""Grammars compiled at once, those included that have taken too long and are still at it."""

JSON_STYLE = {
    # One way to write each document, that of Python's json.dumps: a weak model cannot ramble in white space,
    # and more tokens are certain.
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    # A keyword that cannot be enforced is an error, never ignored.
    "lenient": False,
    "coerce_one_of": False,
}


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled grammar for one model's tokens. Immutable; may serve any number of requests at once.

    Attributes:
        kind: one of `KINDS`.
        source: what it was compiled from; a schema or a list of choices as JSON text.
        tokens: the vocabulary that it was compiled for.
    """

    kind: str
    source: str
    tokens: GrammarTokens = field(repr=False)
    _start: LLMatcher = field(repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def matcher(self) -> LLMatcher:
        """A new matcher at the beginning of the grammar. From any thread."""
        with self._lock:
            return self._start.deep_copy()


def compile_grammar(kind: str, source: object, tokenizer: Tokenizer, *, param: str = "grammar") -> Grammar:
    """Compile a grammar; seconds at the very most, mostly milliseconds.

    Args:
        kind: `json_object` (source is not read), `json_schema` (a schema, as an object or JSON text), `regex`,
            `choice` (a list of texts), `lark` (llguidance's dialect of Lark).
        tokenizer: of the model that will generate.
        param: the field of the request that an error names.

    Raises:
        ArmillaryError: INVALID_REQUEST, with the keyword or the place that cannot be compiled.
    """
    if kind not in KINDS:
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"a grammar must be of kind {', '.join(KINDS)}, given {kind!r:.60}", param
        )
    text = _source(kind, source, param)
    tokens = tokens_of(tokenizer, param)
    known = tokens.recall((kind, text))
    if isinstance(known, Grammar):
        return known
    try:
        start = _within(MAX_SECONDS, lambda: build(kind, text, tokens))
    except TimeoutError:
        problem = f"it takes longer than {MAX_SECONDS:g} seconds to compile"
    except ArmillaryError:
        raise
    except Exception as error:  # whatever a compiler raises is about what it was given
        problem = str(error) or type(error).__name__
    else:
        grammar = Grammar(kind, text, tokens, start)
        tokens.remember((kind, text), grammar)
        return grammar
    raise ArmillaryError(Code.INVALID_REQUEST, f"{_NAMES[kind]} {refusal(problem, own=kind == 'lark')}", param)


def build(kind: str, text: str, tokens: GrammarTokens) -> LLMatcher:
    """A matcher at the beginning of a grammar that is known to be in order; `ValueError` where it cannot be made."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(verbose_errors=False, max_lexer_states=MAX_STATES)
    start = LLMatcher(tokens.handle, _definition(kind, text), log_level=0, limits=limits)
    if not start.is_error() and not any(start.compute_bitmask()) and not start.is_error():
        raise ValueError("it allows nothing that this model could write")
    begun = time.thread_time()
    start.deep_copy().compute_ff_tokens()
    if time.thread_time() - begun > MAX_FIRST_SECONDS:
        raise ValueError(f"its first step takes more than {MAX_FIRST_SECONDS:g} seconds of processor time")
    if start.is_error():
        raise ValueError(start.get_error())
    return start


_STACK = 256 * 2**20
"""Bytes of stack for a compiler: llguidance descends once for every rule that leads to another, and a chain as
long as `MAX_SOURCE` allows runs through the 8 MiB of an ordinary thread, which would end the process."""
_compilers = threading.BoundedSemaphore(MAX_COMPILERS)
_starting = threading.Lock()


def _within(seconds: float, function: Callable[[], LLMatcher]) -> LLMatcher:
    """Run a function in a thread of its own, for so long at most; one that takes longer is left behind.

    Raises:
        TimeoutError: it has not ended in time.
        ArmillaryError: UNAVAILABLE where all compilers are busy for that long.
    """
    slots = _compilers
    if not slots.acquire(timeout=seconds):
        raise ArmillaryError(
            Code.UNAVAILABLE, f"all {MAX_COMPILERS} compilers of grammars are busy; try again in a moment"
        )
    result: Future[LLMatcher] = Future()

    def run() -> None:
        try:
            result.set_result(function())
        except Exception as error:
            result.set_exception(error)
        except BaseException as error:  # a panic of llguidance is no `Exception`
            result.set_exception(RuntimeError(f"the compiler broke: {error}"))
        finally:
            slots.release()

    try:
        with _starting:
            usual = threading.stack_size(_STACK)
            try:
                threading.Thread(target=run, name="grammar", daemon=True).start()
            finally:
                threading.stack_size(usual)
    except BaseException:
        slots.release()
        raise
    return result.result(seconds)


_NAMES = {
    "json_object": "the JSON grammar",
    "json_schema": "the schema",
    "regex": "the regular expression",
    "choice": "the list of choices",
    "lark": "the Lark grammar",
}


def _source(kind: str, source: object, param: str) -> str:
    """The text of a grammar, checked for shape and size."""

    def refuse(rule: str, given: object) -> ArmillaryError:
        return ArmillaryError(Code.INVALID_REQUEST, f"{_NAMES[kind]} must {rule}, given {given!r:.80}", param)

    if kind == "json_object":
        return ""
    if kind == "json_schema":
        if isinstance(source, str):
            try:
                source = json.loads(source)
            except (ValueError, RecursionError) as error:
                raise refuse(f"be JSON ({error})", source) from None
        if not isinstance(source, Mapping):
            raise refuse("be a JSON object", source)
        _check_schema(source, refuse)
        text = json.dumps(source, ensure_ascii=False, separators=(",", ":"))
    elif kind == "choice":
        if not isinstance(source, list | tuple) or not source or len(source) > MAX_CHOICES:
            raise refuse(f"be a list of 1 to {MAX_CHOICES} texts", source)
        for choice in source:
            if not isinstance(choice, str) or not choice:
                raise refuse("hold texts of at least one character", choice)
        text = json.dumps(list(dict.fromkeys(source)), ensure_ascii=False)
    else:
        if not isinstance(source, str) or not source:
            raise refuse("be a text of at least one character", source)
        if _brackets(source) > MAX_BRACKETS:
            raise refuse(f"nest brackets at most {MAX_BRACKETS} deep", source)
        text = source
    if len(text) > MAX_SOURCE:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"{_NAMES[kind]} must have at most {MAX_SOURCE} characters, given {len(text)}",
            param,
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise refuse("be valid Unicode", text) from None
    return text


def _check_schema(schema: Mapping[str, Any], refuse: Any) -> None:
    """Refuse what is too deep for the compiler, and what would switch its checks off."""
    if "x-guidance" in schema:
        raise refuse("not set the keyword x-guidance: how JSON is written is fixed here", schema["x-guidance"])
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for item in level
            for inner in (item.values() if isinstance(item, Mapping) else item if isinstance(item, list) else ())
        ]
        if not level:
            return
    raise refuse(f"nest at most {MAX_DEPTH} levels deep", "more")


def _brackets(text: str) -> int:
    """How deep brackets may be nested in a text, whatever escapes and strings make of some of them."""
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}" and depth:
            depth -= 1
    return deepest


def _definition(kind: str, text: str) -> str:
    """The grammar as llguidance takes it."""
    from llguidance import LLMatcher

    if kind in ("json_object", "json_schema"):
        schema = text if kind == "json_schema" else '{"type":"object"}'
        return LLMatcher.grammar_from_json_schema(schema, overrides=JSON_STYLE)  # type: ignore[arg-type]
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if kind == "choice":
        text = "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in json.loads(text))
    return LLMatcher.grammar_from_lark(text)
