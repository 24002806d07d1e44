"""What is compiled, what is refused and why, and what a compiler may not do to anybody else."""

from __future__ import annotations

import gc
import json
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from armillary import LLM, SamplingParams
from armillary.core.request import FinishReason, Sequence
from armillary.core.step import Entry, OwnFault
from armillary.errors import ArmillaryError, Code
from armillary.models.tokenizer import Tokenizer
from armillary.runtime import grammar as module
from armillary.runtime import grammar_tokens
from armillary.runtime.executor import TorchExecutor
from armillary.runtime.grammar import KINDS, MAX_DEPTH, MAX_SOURCE, Grammar, compile_grammar
from armillary.runtime.grammar_masks import GrammarState, Masks
from armillary.runtime.grammar_tokens import MAX_REMEMBERED
from grammar_cells import Model, constrained, make_model, request, run
from small_tokenizers import BYTE_LEVEL_CONFIG, byte_level, write_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("byte"))


@pytest.fixture(scope="module")
def tokenizer(model: Model) -> Tokenizer:
    return model.tokenizer


def refusal(tokenizer: Tokenizer, kind: str, source: object = None) -> ArmillaryError:
    with pytest.raises(ArmillaryError) as caught:
        compile_grammar(kind, source, tokenizer, param="response_format")
    assert caught.value.param == "response_format"
    return caught.value


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "keyword, schema",
    [
        ("not", {"not": {"type": "string"}}),
        ("uniqueItems", {"type": "array", "uniqueItems": True}),
        ("contains", {"type": "array", "contains": {"type": "null"}}),
        ("if", {"if": {"type": "string"}, "then": {"minLength": 1}}),
        ("dependentRequired", {"type": "object", "dependentRequired": {"a": ["b"]}}),
        ("propertyNames", {"type": "object", "propertyNames": {"pattern": "^a"}}),
        ("unevaluatedProperties", {"type": "object", "unevaluatedProperties": False}),
        ("$dynamicRef", {"$dynamicRef": "#node"}),
        ("oneOf", {"oneOf": [{"type": "string"}, {"type": "string", "minLength": 3}]}),
        ("format", {"type": "string", "format": "colour"}),
        ("type", {"type": "text"}),
        ("minLength", {"type": "string", "minLength": 5, "maxLength": 2}),
        ("look-ahead", {"type": "string", "pattern": "(?=a)b"}),
        ("x-guidance", {"x-guidance": {"lenient": True}, "not": {}}),
        ("http://elsewhere/schema", {"$ref": "http://elsewhere/schema"}),
        ("uniqueItems", {"type": "object", "properties": {"deep": {"items": {"uniqueItems": True}}}}),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_by_its_keyword(
    tokenizer: Tokenizer, keyword: str, schema: dict[str, Any]
) -> None:
    error = refusal(tokenizer, "json_schema", schema)
    assert error.code is Code.INVALID_REQUEST and keyword in error.message


@pytest.mark.parametrize(
    "kind, source",
    [
        ("json_schema", None),
        ("json_schema", "[]"),
        ("json_schema", "{"),
        ("json_schema", {"const": "\ud800"}),
        ("json_schema", {"enum": []}),
        ("regex", ""),
        ("regex", "("),
        ("regex", 7),
        ("regex", r"(a)\1"),
        ("choice", []),
        ("choice", [""]),
        ("choice", "yes"),
        ("choice", [1]),
        ("choice", ["x"] * 5000),
        ("lark", "start: nowhere"),
        ("lark", "begin: /a/"),
        ("lark", "start: start start"),
        ("lark", "\0"),
        ("xml", "<a/>"),
    ],
)
def test_what_is_no_grammar_is_refused(tokenizer: Tokenizer, kind: str, source: object) -> None:
    assert refusal(tokenizer, kind, source).code is Code.INVALID_REQUEST


@pytest.mark.parametrize(
    ("kind", "source", "says"),
    [
        ("lark", 'start: start "a"', "it allows no text at all: a rule or reference leads only to itself"),
        ("lark", "start: a\na: b\nb: a", "it allows no text at all"),
        ("lark", "start: A\nA: /a*/ & /b+/", "it allows no text at all"),
        ("json_schema", {"$ref": "#"}, "it allows no text at all"),
        ("lark", 'start: a\na: "x" nowhere', 'line 2, column 4: unknown name: "nowhere"'),
        ("lark", 'start: "x" )', 'expecting rule, token or statement, at ")"'),
        ("lark", "start: /[/", 'line 1, column 8: the regular expression "[": unclosed character class'),
        ("lark", 'start: "x', "a text that does not end"),
        ("regex", r"(a)\1", "backreferences are not supported"),
        ("regex", "a^b", "anchors and look-around are not supported"),
        ("json_schema", {"type": "string", "pattern": "("}, "a pattern: unclosed group"),
    ],
)
def test_a_compilers_complaint_is_told_in_words(tokenizer: Tokenizer, kind: str, source: object, says: str) -> None:
    message = refusal(tokenizer, kind, source).message
    assert message.startswith(("the Lark grammar", "the regular expression", "the schema")) and says in message
    for internal in ("NoExtension", "non-verbose", "1 |", "^", "(in regex)", "(at "):
        assert internal not in message.replace(str(source), ""), message


def test_depth_and_size_are_limited(tokenizer: Tokenizer) -> None:
    deep: dict[str, Any] = {}
    for _ in range(MAX_DEPTH):
        deep = {"items": deep}
    assert "deep" in refusal(tokenizer, "json_schema", deep).message
    assert "deep" in refusal(tokenizer, "regex", "(" * 200 + "a" + ")" * 200).message
    assert str(MAX_SOURCE) in refusal(tokenizer, "regex", "a" * (MAX_SOURCE + 1)).message


@pytest.mark.parametrize(
    "kind, source",
    [
        ("lark", "start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(9000)) + 'a9000: "x"'),
        ("lark", "start: A0\n" + "".join(f'A{i}: A{i + 1} "x"\n' for i in range(5000)) + 'A5000: "x"'),
        (
            "json_schema",
            {
                "$ref": "#/$defs/a0",
                "$defs": {
                    **{f"a{i}": {"items": {"$ref": f"#/$defs/a{i + 1}"}, "type": "array"} for i in range(2200)},
                    "a2200": {"type": "string"},
                },
            },
        ),
    ],
    ids=["rules", "terminals", "references"],
)
def test_a_long_chain_of_rules_does_not_run_out_of_stack(tokenizer: Tokenizer, kind: str, source: object) -> None:
    """On the stack of an ordinary thread each of these ends the process."""
    try:
        assert compile_grammar(kind, source, tokenizer).matcher().compute_bitmask()
    except ArmillaryError as error:  # on a machine so slow that the time limit comes first
        assert "seconds" in error.message


# ---------------------------------------------------------------- compilers that misbehave


def test_a_compiler_that_hangs_hits_its_request_alone(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(module, "_compilers", threading.BoundedSemaphore(2))
    release = threading.Event()
    real = module.build

    def build(kind: str, text: str, tokens: Any) -> Any:
        if "hang" in text:
            release.wait(60)
        return real(kind, text, tokens)

    monkeypatch.setattr(module, "build", build)
    assert "0.2 seconds" in refusal(tokenizer, "regex", "hang1").message
    assert compile_grammar("regex", "quick[0-9]", tokenizer)
    assert "0.2 seconds" in refusal(tokenizer, "regex", "hang2").message
    with pytest.raises(ArmillaryError) as caught:  # both compilers hang now
        compile_grammar("regex", "quick[0-8]", tokenizer)
    assert caught.value.code is Code.UNAVAILABLE
    release.set()
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            assert compile_grammar("regex", "quick[0-7]", tokenizer)
            break
        except ArmillaryError:
            continue
    else:
        raise AssertionError("the compilers were not given back")


class Panic(BaseException):
    """As llguidance's own, which is no `Exception`."""


@pytest.mark.parametrize("error", [RuntimeError("out of order"), MemoryError(), Panic("index out of bounds")])
def test_a_compiler_that_raises_is_a_refusal(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def build(kind: str, text: str, tokens: Any) -> Any:
        raise error

    monkeypatch.setattr(module, "build", build)
    refused = refusal(tokenizer, "regex", "never compiled")
    assert refused.code is Code.INVALID_REQUEST and "bounds" not in refused.message


# ---------------------------------------------------------------- what is made


def test_the_same_grammar_is_compiled_once(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    real = module.build
    monkeypatch.setattr(module, "build", lambda kind, text, tokens: built.append(text) or real(kind, text, tokens))
    one = compile_grammar("json_schema", {"type": "integer", "minimum": 3}, tokenizer)
    two = compile_grammar("json_schema", '{"type": "integer", "minimum": 3}', tokenizer)
    assert one == two and hash(one) == hash(two) and len(built) == 1
    assert compile_grammar("json_schema", {"minimum": 3, "type": "integer"}, tokenizer) != one, "order is kept"
    for number in range(MAX_REMEMBERED + 1):
        compile_grammar("regex", f"x{number}", tokenizer)
    compile_grammar("json_schema", {"type": "integer", "minimum": 3}, tokenizer)
    assert built.count(one.source) == 2


def test_long_grammars_are_kept_by_their_length(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_tokens, "MAX_REMEMBERED_SOURCE", 100)
    words = ["a" * 40, "b" * 40, "c" * 40]
    a, b, c = (compile_grammar("regex", word, tokenizer) for word in words)
    assert compile_grammar("regex", words[2], tokenizer) is c and compile_grammar("regex", words[1], tokenizer) is b
    assert compile_grammar("regex", words[0], tokenizer) is not a, "the one that was not asked for the longest"
    alone = compile_grammar("regex", "d" * 200, tokenizer)
    assert compile_grammar("regex", "d" * 200, tokenizer) is alone, "the latest stays, however long"
    assert compile_grammar("regex", words[1], tokenizer) is not b


def test_every_kind_has_a_grammar(tokenizer: Tokenizer) -> None:
    sources: dict[str, object] = {"json_schema": {"type": "null"}, "regex": "a", "choice": ["a"], "lark": 'start: "a"'}
    for kind in KINDS:
        made = compile_grammar(kind, sources.get(kind), tokenizer)
        assert isinstance(made, Grammar) and made.kind == kind
        assert made.matcher() is not made.matcher()


def test_a_model_that_names_no_end_is_refused(tmp_path: Path) -> None:
    settings = {key: value for key, value in BYTE_LEVEL_CONFIG.items() if key != "eos_token"}
    endless = Tokenizer.from_folder(write_tokenizer(tmp_path, byte_level(), settings))
    assert "end-of-text" in refusal(endless, "json_object").message


# ---------------------------------------------------------------- with other parameters


@pytest.mark.parametrize("field, value", [("ignore_eos", True), ("min_tokens", 3)])
def test_what_would_keep_an_answer_from_ending_is_refused(tokenizer: Tokenizer, field: str, value: Any) -> None:
    with pytest.raises(ArmillaryError) as caught:
        SamplingParams(grammar=compile_grammar("json_object", None, tokenizer), **{field: value})
    assert caught.value.param == field and "grammar" in caught.value.message


def test_a_grammar_must_be_one() -> None:
    with pytest.raises(ArmillaryError) as caught:
        SamplingParams(grammar="start: /a/")  # type: ignore[arg-type]
    assert caught.value.param == "grammar"


def test_a_bias_chooses_among_what_is_allowed(model: Model) -> None:
    """Forbidden tokens stay forbidden at +100; all that is allowed at -100 is still allowed."""
    ids = {text: model.tokenizer.encode(text, add_special=False)[0] for text in ("a", "b", "x")}
    told = run(
        model,
        [
            request(
                model,
                "up",
                constrained(model, "regex", "[ab]{6}", temperature=0, logit_bias={ids["b"]: 100.0, ids["x"]: 100.0}),
            ),
            request(
                model,
                "down",
                constrained(model, "regex", "[ab]{6}", temperature=0, logit_bias={ids["a"]: -100.0, ids["b"]: -100.0}),
            ),
            request(
                model,
                "end",
                constrained(model, "regex", "[ab]{6,9}", temperature=0, logit_bias=dict.fromkeys(model.ends, 100.0)),
            ),
        ],
    )
    assert told.text(model, "up") == "bbbbbb" and set(told.text(model, "down")) <= {"a", "b"}
    assert len(told.text(model, "end")) == 6, "the end is as near as the grammar allows"
    assert set(told.finish.values()) == {FinishReason.STOP}


def test_penalties_work_within_the_grammar(model: Model) -> None:
    def text(**params: float) -> str:
        told = run(model, [request(model, "r", constrained(model, "regex", "[a-z]{12}", temperature=0, **params))])
        assert not told.errors
        return told.text(model, "r")

    held = text(frequency_penalty=2.0, presence_penalty=2.0)
    assert len(held) == 12 and len(set(held)) >= len(set(text()))


def test_stop_strings_and_stop_tokens_may_end_an_answer_early(model: Model) -> None:
    with LLM.over(*_engine(model)) as llm:
        word = llm.grammar("choice", ["one two three"])
        cut = llm.generate("say ", SamplingParams(grammar=word, stop=(" two",), max_tokens=50))[0]
        assert cut.text == "one" and cut.finish_reason is FinishReason.STOP and cut.choices[0].stop == " two"
        whole = llm.generate("say ", SamplingParams(grammar=word, max_tokens=50, n=2))[0]
        assert [choice.text for choice in whole.choices] == ["one two three"] * 2
        bad = llm.generate(
            "say ", SamplingParams(max_tokens=3, grammar=compile_grammar("choice", ["x"], _other(model)))
        )[0]
        assert bad.error is not None and bad.error.param == "grammar"
        with pytest.raises(ArmillaryError) as caught:
            llm.grammar("json_schema", {"not": {}})
        assert caught.value.param == "grammar"


def _other(model: Model) -> Tokenizer:
    return Tokenizer.from_folder(model.folder)


def _engine(model: Model) -> tuple[Any, Tokenizer, int]:
    from armillary.core.config import SchedulerConfig
    from armillary.core.engine import Engine
    from armillary.core.scheduler import Scheduler
    from armillary.runtime.clock import WallClock

    config = SchedulerConfig(num_blocks=64, block_size=8, max_context=256)
    executor = TorchExecutor(model.decoder, model.decoder.spec, 64, 8)
    return (
        Engine(Scheduler(config), executor, WallClock(), lambda events: None),
        model.tokenizer,
        model.decoder.spec.vocab_size,
    )


# ---------------------------------------------------------------- grammars that break while they run


def test_a_grammar_that_breaks_ends_its_own_sequence(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [
        request(model, "broken", constrained(model, "regex", "[a-c]{50}", temperature=0)),
        request(model, "well", constrained(model, "regex", "[d-f]{50}", temperature=0)),
        request(model, "free", SamplingParams(temperature=0), limit=50),
    ]
    whole = run(model, asked)
    real = GrammarState.take

    def take(state: GrammarState, token: int) -> None:
        real(state, token)
        if state._grammar.source.startswith("[a-c]") and state._count == 20:
            raise Panic("index out of bounds")

    monkeypatch.setattr(GrammarState, "take", take)
    told = run(model, asked)
    assert told.finish["broken", 0] is FinishReason.ERROR
    assert isinstance(told.errors[0], OwnFault) and "index out of bounds" in told.errors[0]
    assert told.grammars.failures == 1
    for name in ("well", "free"):
        assert told.tokens[name, 0] == whole.tokens[name, 0]


def test_a_step_that_fails_leaves_no_mask_behind(model: Model) -> None:
    """The masks of a step whose computation broke are waited for before the next step begins."""
    masks = Masks()
    asked = request(model, "a", constrained(model, "regex", "[a-c]{50}"))
    one = Sequence(asked, 0, 1, 0.0)
    assert masks.begin([Entry(one, 0, len(asked.prompt), 1)]) is not None
    pending = masks.begin([Entry(one, 0, len(asked.prompt), 1)])
    assert pending is not None and len(masks.finish(pending)) == 1
    masks.forget([1])
    assert masks.begin([Entry(one, 0, 3, 0)]) is None, "a chunk that samples nothing needs no mask"
    assert masks.stats().steps == 1 and set(masks.costs) == {"grammar_mask", "grammar_wait", "grammar_follow"}
    masks.close()


def test_a_state_whose_tokens_were_not_kept_begins_anew(model: Model) -> None:
    grammar = compile_grammar("regex", "[a-c]{3}x", model.tokenizer)
    asked = request(model, "a", SamplingParams(grammar=grammar))
    a, b, x = (model.tokenizer.encode_inside(text)[0] for text in "abx")
    state = GrammarState(grammar)
    sequence = Sequence(asked, 0, 1, 0.0)
    for token in (a, a, a, x):
        state.take(token)
    assert state.certain() in model.ends
    sequence.tokens += [b, b]
    state.catch_up(sequence)
    sequence.tokens += [b]
    state.catch_up(sequence)
    assert state.problem is None and state.certain() == x
    state.take(a)
    assert state.problem is not None and state.certain() is None


def test_schemas_keep_the_order_of_their_properties(model: Model) -> None:
    names = ["zeta", "alpha", "mid"]
    schema = {
        "type": "object",
        "properties": {n: {"type": "boolean"} for n in names},
        "required": names,
        "additionalProperties": False,
    }
    told = run(model, [request(model, "a", constrained(model, "json_schema", schema, temperature=1.0))])
    assert list(json.loads(told.text(model, "a"))) == names


# ---------------------------------------------------------------- what would hold up everybody


def test_thousands_of_forced_tokens_come_in_bounded_runs(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is forced is asked for once, not once for each token: the rest of a long text would be gone through anew."""
    monkeypatch.setattr("armillary.runtime.grammar_masks.MAX_RUN", 16)
    asked = 0
    real = GrammarState.certain

    def certain(state: GrammarState) -> int | None:
        nonlocal asked
        asked += not state._ahead
        return real(state)

    monkeypatch.setattr(GrammarState, "certain", certain)
    word = "".join(chr(97 + i * i % 26) for i in range(150))
    told = run(model, [request(model, "long", constrained(model, "choice", [word], temperature=1.0))])
    assert told.text(model, "long") == word and told.finish["long", 0] is FinishReason.STOP
    assert told.stats.forced_tokens > 60 and told.stats.steps >= told.stats.forced_tokens // 17
    assert asked < 40


def test_a_grammar_whose_step_takes_long_goes_no_further(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [
        request(model, "slow", constrained(model, "regex", "[a-c]{50}", temperature=0)),
        request(model, "quick", constrained(model, "regex", "[d-f]{9}", temperature=0)),
    ]
    quick = run(model, asked[1:])
    real = GrammarState.mask
    monkeypatch.setattr("armillary.runtime.grammar_masks.MAX_STEP_SECONDS", 0.05)

    def mask(state: GrammarState, words: Any) -> None:
        real(state, words)
        until = time.thread_time() + 0.06
        while state._grammar.source == "[a-c]{50}" and time.thread_time() < until:
            pass

    monkeypatch.setattr(GrammarState, "mask", mask)
    told = run(model, asked)
    assert isinstance(told.errors[0], OwnFault) and "processor time" in told.errors[0]
    assert told.tokens["quick", 0] == quick.tokens["quick", 0]


def test_a_grammar_whose_first_step_takes_long_is_refused(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FIRST_SECONDS", 0.0)
    assert "processor time" in refusal(tokenizer, "regex", "a{20000}b").message


def test_a_tokenizer_that_is_done_with_is_not_kept(model: Model) -> None:
    tokenizer = _other(model)
    grammar = compile_grammar("choice", ["one"], tokenizer)
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None and grammar.matcher().compute_bitmask()
