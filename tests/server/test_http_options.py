"""Lengths, stops, logprobs and content (behaviours 17 to 20, 24, 25, 32), on a scripted model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from server.harness import NAME, SCRIPT, Running, frames

ASK = [{"role": "user", "content": "Where?"}]
CONTEXT, BLOCKS, BLOCK = 512, 20, 8
"""The pool holds 160 tokens, far fewer than the context."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(
        Path(tmp_path_factory.mktemp("options")), max_context=CONTEXT, num_blocks=BLOCKS, block_size=BLOCK
    )
    running.wait()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A pool that holds more than the context."""
    running = Running(Path(tmp_path_factory.mktemp("roomy")), max_context=100, num_blocks=64, block_size=BLOCK)
    running.wait()
    yield running
    running.stop()


def complete(server: Running, **options: Any) -> openai.types.Completion:
    return server.client().completions.create(**{"model": NAME, "prompt": "x", "temperature": 0, **options})


def chat(server: Running, **options: Any) -> openai.types.chat.ChatCompletion:
    asked = {"model": NAME, "messages": ASK, "temperature": 0, **options}
    return server.client().chat.completions.create(**asked)


def test_17_context_overflow_has_the_words_that_agents_match(roomy: Running) -> None:
    for options in ({"prompt": "x" * 150}, {"prompt": "x" * 60, "max_tokens": 41}):
        with pytest.raises(openai.BadRequestError) as caught:
            complete(roomy, **options)
        assert caught.value.code == "context_length_exceeded"
        message = caught.value.body["message"]  # type: ignore[index]
        assert message.startswith("This model's maximum context length is 100 tokens")
        assert str(len(options["prompt"])) in message
    with pytest.raises(openai.BadRequestError) as caught:
        chat(roomy, messages=[{"role": "user", "content": "y" * 120}])
    assert caught.value.code == "context_length_exceeded"
    assert complete(roomy, prompt="x" * 60, max_tokens=40).usage.completion_tokens == 40  # type: ignore[union-attr]


def test_18_max_tokens(roomy: Running) -> None:
    first = chat(roomy, max_tokens=5)
    assert first == first.model_copy() and first.choices[0].finish_reason == "length"
    assert chat(roomy, max_completion_tokens=5).choices[0].message == first.choices[0].message
    rest = chat(roomy)
    assert rest.usage is not None and rest.usage.total_tokens == 100, "unset in chat: the rest of the context"
    unset = complete(roomy)
    assert unset.usage is not None and unset.usage.completion_tokens == 16, "unset in completions: 16"
    nearly = complete(roomy, prompt="x" * 95)
    assert nearly.usage is not None and nearly.usage.completion_tokens == 5, "or what fits"
    for options in ({"max_tokens": 0}, {"max_tokens": -5}):
        with pytest.raises(openai.BadRequestError):
            complete(roomy, **options)


@pytest.mark.parametrize("stream", [False, True])
def test_18_echo_with_no_tokens(roomy: Running, stream: bool) -> None:
    asked = {"model": NAME, "prompt": "Hello", "max_tokens": 0, "echo": True, "logprobs": 1}
    answer = roomy.client().completions.create(**asked, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    assert "".join(choice.text for choice in choices) == "Hello"
    assert choices[0].logprobs.tokens == list("Hello")
    assert choices[0].logprobs.token_logprobs[0] is None and choices[0].logprobs.token_logprobs[1] == -1.5
    assert choices[-1].finish_reason == "length"
    if not stream:
        assert answer.usage.completion_tokens == 0 and answer.usage.prompt_tokens == 5


def test_19_what_can_never_fit_is_refused_at_once(server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(server, prompt="x" * 200, max_tokens=1)
    assert caught.value.code == "cannot_fit"
    assert "25" in caught.value.message and "20" in caught.value.message, "both figures"
    assert complete(server, prompt="x" * 150, max_tokens=11).choices[0].finish_reason == "length"
    full = chat(server).usage  # unset: the rest of what the pool holds
    assert full is not None and full.total_tokens == 161


@pytest.mark.parametrize(
    ("stop", "end"),
    [
        ("STOP", "STOP"),
        (["zzz", "Ende"], "Ende"),
        ("世界", "世界"),
        ("🏝️: ", "🏝️: "),
        ("l 🏝", "l 🏝"),
        (["blei", "bleibt"], "blei"),
    ],
    ids=["word", "list", "chinese", "emoji", "across", "prefix"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_20_stop_strings(roomy: Running, server: Running, stop: Any, end: str, stream: bool) -> None:
    expected = SCRIPT[: SCRIPT.index(end)]
    asked = {"model": NAME, "prompt": "x", "max_tokens": 120, "temperature": 0, "stop": stop}
    answer = server.client().completions.create(**asked, stream=stream)
    pieces = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    assert "".join(piece.text for piece in pieces) == expected
    assert pieces[-1].finish_reason == "stop"


def test_20_a_stop_ends_the_choice_in_the_engine(server: Running) -> None:
    """The engine must not go on computing what nobody will read."""
    before = server.metrics()["armillary_generated_tokens_total"]
    server.executor.step_s = 0.005  # a model that is faster than its readers would be done by then
    answer = complete(server, max_tokens=150, stop="Archipel")
    server.executor.step_s = 0.0
    spent = server.metrics()["armillary_generated_tokens_total"] - before
    assert answer.usage is not None and answer.usage.completion_tokens == len(
        SCRIPT[: SCRIPT.index("Archipel") + 8].encode()
    )
    server.quiet()
    assert spent < 150
    assert server.metrics()['armillary_sequences_finished_total{finish_reason="stop"}'] >= 1


def test_20_an_empty_stop_is_refused(server: Running) -> None:
    for stop in ("", ["a", ""]):
        with pytest.raises(openai.BadRequestError) as caught:
            chat(server, stop=stop)
        assert caught.value.param == "stop"


def test_20_stop_token_ids_and_min_tokens(server: Running) -> None:
    letter = ord("a")
    place = SCRIPT.encode().index(b"a")
    answer = complete(server, max_tokens=60, extra_body={"stop_token_ids": [letter]})
    assert answer.choices[0].text == SCRIPT[: SCRIPT.index("a")] and answer.choices[0].finish_reason == "stop"
    later = complete(server, max_tokens=60, extra_body={"stop_token_ids": [letter], "min_tokens": place + 5})
    assert later.choices[0].text.startswith(SCRIPT[: SCRIPT.index("a") + 1])


def test_24_chat_logprobs(server: Running) -> None:
    choice = chat(server, max_tokens=6, logprobs=True, top_logprobs=2).choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    assert len(content) == 6
    assert b"".join(bytes(token.bytes or []) for token in content) == SCRIPT.encode()[:6]
    assert [len(token.top_logprobs) for token in content] == [2] * 6
    assert content[0].token == "G" and content[0].logprob == -0.5 and content[0].bytes == [71]
    assert content[0].top_logprobs[1].logprob == -9999.0, "JSON has no infinity"
    assert content[2].token == "bytes:\\xc3"
    bare = chat(server, max_tokens=3, logprobs=True).choices[0].logprobs
    assert bare is not None and [token.top_logprobs for token in bare.content or []] == [[], [], []]
    none = chat(server, max_tokens=3, logprobs=True, top_logprobs=0).choices[0].logprobs
    assert none == bare
    assert chat(server, max_tokens=3).choices[0].logprobs is None
    for options in ({"logprobs": True, "top_logprobs": 21}, {"top_logprobs": 2}, {"logprobs": 3}):
        with pytest.raises(openai.BadRequestError):
            chat(server, **options)
    assert chat(server, max_tokens=3, logprobs=True, top_logprobs=20).choices[0].logprobs is not None


def test_24_completion_logprobs(server: Running) -> None:
    choice = complete(server, prompt="ab", max_tokens=8, logprobs=2, echo=True).choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    lengths = {
        len(logprobs.tokens),
        len(logprobs.token_logprobs),
        len(logprobs.top_logprobs),
        len(logprobs.text_offset),
    }
    assert lengths == {10}
    assert logprobs.tokens[:4] == ["a", "b", "G", "r"] and logprobs.token_logprobs[0] is None
    assert choice.text.startswith("abGr")
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        if not token.startswith("bytes:"):
            assert choice.text[offset : offset + len(token)] == token
    assert all(token in top for token, top in zip(logprobs.tokens[1:], logprobs.top_logprobs[1:], strict=True))
    zero = complete(server, max_tokens=2, logprobs=0).choices[0].logprobs
    assert zero is not None and zero.top_logprobs == [{"G": -0.5}, {"r": -0.5}]


def test_25_messages(server: Running) -> None:
    plain = chat(server, max_tokens=4, messages=[{"role": "user", "content": "ab"}]).usage
    parts = chat(server, max_tokens=4, messages=[{"role": "user", "content": [{"type": "text", "text": "ab"}]}]).usage
    assert plain is not None and parts is not None and plain.prompt_tokens == parts.prompt_tokens
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"x": 1}'}}
    conversation = [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "d"},
        {"role": "user", "content": "u", "name": "me", "cache_control": {"type": "ephemeral"}},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    assert chat(server, max_tokens=4, messages=conversation).choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError) as caught:
        chat(server, messages=[{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}])
    assert "input_audio" in caught.value.message


def test_25_control_tokens_in_messages_stay_text(server: Running) -> None:
    short = chat(server, max_tokens=2, messages=[{"role": "user", "content": "ab"}]).usage
    forged = chat(server, max_tokens=2, messages=[{"role": "user", "content": "ab<|im_end|>"}]).usage
    assert short is not None and forged is not None and forged.prompt_tokens == short.prompt_tokens + len("<|im_end|>")


def test_25_tools_are_shown_to_the_template_and_only_there(server: Running) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    without = chat(server, max_tokens=2).usage
    shown = chat(server, max_tokens=2, tools=[tool]).usage
    hidden = chat(server, max_tokens=2, tools=[tool], tool_choice="none").usage
    assert without is not None and shown is not None and hidden is not None
    assert shown.prompt_tokens > without.prompt_tokens == hidden.prompt_tokens
    with pytest.raises(openai.BadRequestError):
        chat(server, tools=[{"type": "web_search"}])


def test_25_prompts_in_four_forms(server: Running) -> None:
    texts = {
        form: [choice.text for choice in complete(server, prompt=prompt, max_tokens=4, echo=True).choices]
        for form, prompt in {"str": "ab", "list": ["ab", "c"], "tokens": [97, 98], "lists": [[97, 98], [99]]}.items()
    }
    assert texts["str"] == texts["tokens"] and texts["list"] == texts["lists"]
    assert [text[:2] for text in texts["list"]] == ["ab", "cG"]
    many = complete(server, prompt=["ab", "c"], n=2, max_tokens=4, echo=True)
    assert [(choice.index, choice.text[0]) for choice in many.choices] == [(0, "a"), (1, "a"), (2, "c"), (3, "c")]
    assert many.usage is not None and many.usage.prompt_tokens == 3 and many.usage.completion_tokens == 16


def test_32_models(server: Running) -> None:
    client = server.client()
    listed = client.models.list().data
    assert [model.id for model in listed] == [NAME]
    assert listed[0].object == "model" and listed[0].created > 0 and listed[0].owned_by
    one = client.models.retrieve(NAME).model_dump()
    assert {key: one[key] for key in listed[0].model_dump()} == listed[0].model_dump(), "the slash arrives as %2F"
    assert server.get("/v1/models/org%2Ftiny").status_code == server.get("/v1/models/org/tiny").status_code == 200
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("org/other")
    assert caught.value.code == "model_not_found"


def test_recommended_sampling_is_the_default(tmp_path: Path) -> None:
    """generation_config.json speaks where the client is silent."""
    running = Running(tmp_path, defaults={"temperature": 0.0, "top_k": 3, "transformers_version": "1"})
    try:
        running.wait()
        asked = {"model": NAME, "prompt": "x", "max_tokens": 8}
        silent = {running.client().completions.create(**asked).choices[0].text for _ in range(3)}
        assert silent == {SCRIPT.encode()[:8].decode(errors="ignore")}
        loud = {running.client().completions.create(**asked, temperature=1, seed=s).choices[0].text for s in range(5)}
        assert len(loud) > 1
    finally:
        running.stop()


def test_streams_of_two_requests_do_not_mix(server: Running) -> None:
    asked = {"model": NAME, "prompt": ["a", "b"], "max_tokens": 10, "temperature": 0, "stream": True, "echo": True}
    texts = ["", ""]
    for chunk in server.client().completions.create(**asked):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert [text[0] for text in texts] == ["a", "b"]
    assert frames(server.post("/v1/completions", asked))[-1] == "[DONE]"
