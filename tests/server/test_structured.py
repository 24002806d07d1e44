"""Structured output (behaviour 27) through the `openai` client, on random weights: only the grammar helps them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from armillary.runtime import grammar as compiler
from armillary.runtime.executor import TorchExecutor
from armillary.runtime.grammar_masks import GrammarState
from grammar_cells import Model, make_model
from server.harness import NAME, Running, frames

ASK: list[Any] = [{"role": "user", "content": "Who is it?"}]
BLOCKS, BLOCK = 60, 8
COLOURS = {"type": "object", "properties": {"colour": {"enum": ["red", "green", "blue"]}, "deep": {"type": "boolean"}},
           "required": ["colour", "deep"], "additionalProperties": False}  # fmt: skip


class Pet(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["cat", "dog"]
    age: int = Field(ge=0, le=30)


class Person(BaseModel):
    """Nested, optional, listed: what pydantic writes with `$defs` and `anyOf`."""

    name: str = Field(max_length=12)
    pets: list[Pet] = Field(max_length=2)
    favourite: Pet | None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("model"))


def start(model: Model, forced: bool) -> Running:
    """A small pool and chunked prompts, so that preemptions happen."""
    spec = model.decoder.spec
    running = Running(
        model.folder,
        TorchExecutor(model.decoder, spec, BLOCKS, BLOCK, forced_tokens=forced),
        vocab_size=spec.vocab_size,
        num_blocks=BLOCKS,
        block_size=BLOCK,
        max_context=400,
        max_chunk_tokens=12,
    )
    running.wait()
    return running


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Running]:
    running = start(model, forced=True)
    yield running
    running.stop()


def chat(server: Running, **options: Any) -> openai.types.chat.ChatCompletion:
    asked = {"model": NAME, "messages": ASK, "max_tokens": 150, "temperature": 1.0, "seed": 3, **options}
    return server.client().chat.completions.create(**asked)


def schema(of: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": of, **more}}


def text_of(answer: openai.types.chat.ChatCompletion, choice: int = 0) -> str:
    content = answer.choices[choice].message.content
    assert content is not None
    return content


# ---------------------------------------------------------------- what is asked for comes


def test_27_json_schema_validates_when_it_stops(server: Running) -> None:
    for seed in range(4):
        answer = chat(server, response_format=schema(COLOURS, strict=True), seed=seed, n=2)
        for choice in answer.choices:
            assert choice.finish_reason == "stop"
            jsonschema.validate(json.loads(choice.message.content or ""), COLOURS)


def test_27_json_object_is_json(server: Running, model: Model) -> None:
    ends = {str(model.tokenizer.token_id(mark)): 12.0 for mark in ('"', "}", ":", "0")}
    stopped = 0
    for seed in range(4):
        answer = chat(server, response_format={"type": "json_object"}, seed=seed, logit_bias=ends, max_tokens=60)
        if answer.choices[0].finish_reason == "stop":
            stopped += 1
            assert isinstance(json.loads(text_of(answer)), dict)
        assert text_of(answer).startswith("{")
    assert stopped


def test_27_text_asks_for_nothing(server: Running) -> None:
    free = chat(server, max_tokens=12)
    assert text_of(chat(server, max_tokens=12, response_format={"type": "text"})) == text_of(free)


def test_27_parse_gives_the_model(server: Running) -> None:
    for seed in range(3):
        answer = server.client().chat.completions.parse(
            model=NAME, messages=ASK, response_format=Person, seed=seed, max_tokens=250
        )
        assert isinstance(answer.choices[0].message.parsed, Person)


def test_27_stream_gives_the_model_and_the_same_text(server: Running) -> None:
    asked: dict[str, Any] = {"model": NAME, "messages": ASK, "seed": 5, "temperature": 1.0, "max_tokens": 250}
    whole = server.client().chat.completions.parse(**asked, response_format=Person)
    with server.client().chat.completions.stream(**asked, response_format=Person) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == text_of(whole)
    assert isinstance(final.choices[0].message.parsed, Person)
    assert final.choices[0].message.parsed == whole.choices[0].message.parsed
    assert deltas


def test_27_an_answer_that_is_cut_says_length(server: Running) -> None:
    answer = chat(server, response_format=schema(COLOURS), max_tokens=4)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 4
    with pytest.raises(openai.LengthFinishReasonError):
        server.client().chat.completions.parse(model=NAME, messages=ASK, response_format=Person, max_tokens=4)


STRUCTURES: list[tuple[dict[str, Any], str]] = [
    ({"regex": "[a-c]{3}-[0-9]{2}"}, r"[a-c]{3}-[0-9]{2}"),
    ({"choice": ["yes", "no way", "naïve 🙂"]}, "yes|no way|naïve 🙂"),
    ({"grammar": 'start: "<" (start | /[xy]+/) ">"'}, r"<+[xy]+>+"),
    ({"json": {"enum": ["a", 1]}}, '"a"|1'),
    ({"json": '{"type": "boolean"}'}, "true|false"),
]


@pytest.mark.parametrize("structure, pattern", STRUCTURES, ids=[next(iter(s)) for s, _ in STRUCTURES])
def test_structured_outputs_on_both_endpoints(server: Running, structure: dict[str, Any], pattern: str) -> None:
    extra = {"structured_outputs": structure}
    for seed in range(3):
        answer = chat(server, extra_body=extra, seed=seed)
        assert answer.choices[0].finish_reason in ("stop", "length")
        if answer.choices[0].finish_reason == "stop":
            assert re.fullmatch(pattern, text_of(answer))
        legacy = server.client().completions.create(
            model=NAME, prompt=["One", "Two"], n=2, max_tokens=150, temperature=1.0, seed=seed, extra_body=extra
        )
        for choice in legacy.choices:
            assert choice.finish_reason == "length" or re.fullmatch(pattern, choice.text)
    streamed = server.client().completions.create(
        model=NAME, prompt="Two", max_tokens=150, temperature=1.0, seed=2, extra_body=extra, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == legacy.choices[2].text


def test_response_format_on_legacy_completions(server: Running) -> None:
    answer = server.client().completions.create(
        model=NAME, prompt="x", max_tokens=60, extra_body={"response_format": schema(COLOURS)}
    )
    jsonschema.validate(json.loads(answer.choices[0].text), COLOURS)


# ---------------------------------------------------------------- what cannot be done is refused


@pytest.mark.parametrize(
    "form, param, words",
    [
        (schema({"not": {"type": "null"}}), "response_format", "not"),
        (schema({"type": "array", "uniqueItems": True}), "response_format", "uniqueItems"),
        (schema({"type": "object", "properties": {"a": {"format": "colour"}}}), "response_format", "colour"),
        (schema({"type": "wrong"}), "response_format", "wrong"),
        (schema({"x-guidance": {"lenient": True}}), "response_format", "x-guidance"),
        ({"type": "json_schema"}, "response_format", "json_schema"),
        ({"type": "json_schema", "json_schema": None}, "response_format", "json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "response_format.json_schema.schema", "required"),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, "response_format.json_schema.name", "required"),
        ({"type": "json_object", "json_schema": {"name": "x", "schema": {}}}, "response_format", "json_object"),
        ({"type": "xml"}, "response_format.type", "json_schema"),
        ({"type": "json_object", "loose": True}, "response_format.loose", "option"),
        ("json", "response_format", "json"),
    ],
)
def test_27_what_cannot_be_enforced_is_a_400(server: Running, form: Any, param: str, words: str) -> None:
    for ask in (
        lambda: chat(server, response_format=form),
        lambda: server.client().completions.create(model=NAME, prompt="x", extra_body={"response_format": form}),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask()
        assert caught.value.param == param and words in str(caught.value)


@pytest.mark.parametrize(
    "structure, param",
    [
        ({}, "structured_outputs"),
        ({"regex": "a", "choice": ["a"]}, "structured_outputs"),
        ({"regex": "("}, "structured_outputs"),
        ({"regex": ""}, "structured_outputs"),
        ({"choice": []}, "structured_outputs"),
        ({"grammar": "start: elsewhere"}, "structured_outputs"),
        ({"grammar": 'start: %json {"x-guidance": {"lenient": true}}'}, "structured_outputs.grammar"),
        ({"json": "["}, "structured_outputs"),
        ({"guided_regex": "a"}, "structured_outputs.guided_regex"),
        ({"json_object": False}, "structured_outputs.json_object"),
    ],
)
def test_structures_that_are_none_are_refused(server: Running, structure: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(server, extra_body={"structured_outputs": structure})
    assert caught.value.param == param


def test_names_of_other_servers_are_refused_not_ignored(server: Running) -> None:
    for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar", "json_schema"):
        with pytest.raises(openai.BadRequestError) as caught:
            chat(server, extra_body={name: "x"})
        assert caught.value.param == name


def test_options_that_contradict_a_grammar_are_refused(server: Running) -> None:
    form = schema(COLOURS)
    for option in ({"ignore_eos": True}, {"min_tokens": 2}, {"structured_outputs": {"regex": "a"}}):
        with pytest.raises(openai.BadRequestError) as caught:
            chat(server, response_format=form, extra_body=option)
        assert caught.value.param == next(iter(option))


# ---------------------------------------------------------------- forced tokens


def test_answers_are_the_same_without_forced_tokens(server: Running, model: Model) -> None:
    """Text, usage, finish and logprobs, greedy and drawn, whole and streamed."""
    plain = start(model, forced=False)
    try:
        for options in (
            {"temperature": 0},
            {"top_p": 0.9, "frequency_penalty": 1.0},
            {"logprobs": True, "top_logprobs": 2, "n": 2, "max_tokens": 60},
            {"max_tokens": 9},
            {"stop": ['", "']},
        ):
            answers = [
                chat(each, response_format=schema(Pet.model_json_schema()), **{"seed": 7, **options})
                for each in (server, plain)
            ]
            assert answers[0].choices == answers[1].choices
            tokens = [answer.usage.completion_tokens for answer in answers if answer.usage]
            assert "stop" in options or tokens[0] == tokens[1]
        assert server.metrics()["armillary_forced_tokens_total"] > 0
        assert plain.metrics()["armillary_forced_tokens_total"] == 0
    finally:
        plain.stop()


def test_neighbours_do_not_change_an_answer(server: Running) -> None:
    form = schema(Pet.model_json_schema())
    alone = [chat(server, response_format=form, seed=seed).choices[0].message.content for seed in range(3)]

    def ask(i: int) -> str | None:
        if i < 3:
            return chat(server, response_format=form, seed=i).choices[0].message.content
        return text_of(chat(server, max_tokens=30, seed=i, n=2))

    with ThreadPoolExecutor(7) as pool:
        together = list(pool.map(ask, range(7)))
    assert together[:3] == alone


# ---------------------------------------------------------------- faults


def test_a_compiler_that_hangs_holds_up_nobody(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "MAX_SECONDS", 1.0)
    release, real = threading.Event(), compiler.build
    entered = threading.Event()

    def build(kind: str, text: str, tokens: Any) -> Any:
        if "hang" in text:
            entered.set()
            release.wait(60)
        return real(kind, text, tokens)

    monkeypatch.setattr(compiler, "build", build)
    try:
        with ThreadPoolExecutor(1) as pool:
            stuck = pool.submit(chat, server, extra_body={"structured_outputs": {"regex": "hang"}})
            assert entered.wait(30)
            assert not stuck.done()
            assert text_of(chat(server, extra_body={"structured_outputs": {"regex": "quick"}})) == "quick"
            assert chat(server, max_tokens=3).choices[0].finish_reason == "length"
            with pytest.raises(openai.BadRequestError) as caught:
                stuck.result(60)
            assert "seconds" in str(caught.value) and caught.value.param == "structured_outputs"
    finally:
        release.set()


def test_a_compiler_that_raises_is_a_400(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(kind: str, text: str, tokens: Any) -> Any:
        raise RuntimeError("out of order")

    monkeypatch.setattr(compiler, "build", build)
    with pytest.raises(openai.BadRequestError) as caught:
        chat(server, extra_body={"structured_outputs": {"regex": "unseen before"}})
    assert "out of order" in str(caught.value)


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_breaks_underway_fails_its_request_alone(
    server: Running, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    real, taken = GrammarState.take, 0

    def take(state: GrammarState, token: int) -> None:
        nonlocal taken
        real(state, token)
        if state._grammar.source == "[a-c]{60}":
            taken += 1
            if taken == 5:  # once there is something to stream: what fails at once is a plain 400
                raise RuntimeError("too many states")

    monkeypatch.setattr(GrammarState, "take", take)
    extra = {"structured_outputs": {"regex": "[a-c]{60}"}}
    if stream:
        body = {"model": NAME, "messages": ASK, "stream": True, **extra}
        sent = frames(server.post("/v1/chat/completions", body))
        assert sent[-1] == "[DONE]" and "too many states" in json.loads(sent[-2])["error"]["message"]
    else:
        with pytest.raises(openai.BadRequestError) as caught:
            chat(server, extra_body=extra)
        assert "too many states" in str(caught.value)
    assert text_of(chat(server, extra_body={"structured_outputs": {"regex": "[a-c]{5}x"}})).endswith("x")


def test_a_schema_that_needs_a_deep_stack_ends_nothing(server: Running) -> None:
    """A chain of references that would run through an ordinary thread's stack, and with it the process."""
    size = 2000
    chain = {f"a{i}": {"items": {"$ref": f"#/$defs/a{i + 1}"}, "type": "array"} for i in range(size)}
    form = schema({"$ref": "#/$defs/a0", "$defs": {**chain, f"a{size}": {"type": "string"}}})
    try:
        assert chat(server, response_format=form, max_tokens=3).choices[0].finish_reason == "length"
    except openai.BadRequestError as error:  # a machine so slow that the time limit came first
        assert "seconds" in str(error)
    assert chat(server, max_tokens=3).choices[0].finish_reason == "length"
