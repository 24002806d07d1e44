"""What OpenAI clients depend upon: framing and streaming (behaviours 1 to 9), on a scripted model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from server.harness import NAME, SCRIPT, Running, frames
from server.scripted import fails_after

ASK = [{"role": "user", "content": "Where?"}]
LENGTH = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(Path(tmp_path_factory.mktemp("streams")))
    running.wait()
    yield running
    running.stop()


def chat(stream: bool, **options: object) -> dict[str, object]:
    return {"model": NAME, "messages": ASK, "temperature": 0, "max_tokens": LENGTH, "stream": stream, **options}


def test_01_events_are_framed_and_end_with_done(server: Running) -> None:
    for path, body in (
        ("/v1/chat/completions", chat(True)),
        ("/v1/completions", {"model": NAME, "prompt": "x", "stream": True, "temperature": 0}),
    ):
        response = server.post(path, body)
        assert response.headers["content-type"].startswith("text/event-stream")
        raw = response.text
        assert raw.endswith("data: [DONE]\n\n")
        events = frames(response)
        assert events.count("[DONE]") == 1 and events[-1] == "[DONE]"
        assert all(event.startswith("{") for event in events[:-1])


def test_02_object_names(server: Running) -> None:
    client = server.client()
    assert client.chat.completions.create(**chat(False)).object == "chat.completion"
    assert {c.object for c in client.chat.completions.create(**chat(True))} == {"chat.completion.chunk"}
    asked = {"model": NAME, "prompt": "x", "max_tokens": 4}
    assert client.completions.create(**asked).object == "text_completion"
    assert {c.object for c in client.completions.create(**asked, stream=True)} == {"text_completion"}


def test_02_the_stream_helper_reads_the_same_text(server: Running) -> None:
    client = server.client()
    options = chat(True, stop="STOP")  # the helper refuses answers that end for their length
    del options["stream"]
    with client.chat.completions.stream(**options) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion().choices[0].message.content
    created = "".join(
        chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**chat(True, stop="STOP"))
    )
    assert text == final == created == SCRIPT[: SCRIPT.index("STOP")]


def test_03_the_first_chunk_has_the_role_and_choices_begin_in_order(server: Running) -> None:
    client = server.client()
    chunks = list(client.chat.completions.create(**chat(True, n=3)))
    assert [chunk.choices[0].index for chunk in chunks[:3]] == [0, 1, 2]
    assert all(chunk.choices[0].delta.role == "assistant" for chunk in chunks[:3])
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[3:])
    options = chat(True, n=2, stop="STOP")
    del options["stream"]
    with client.chat.completions.stream(**options) as stream:
        final = stream.get_final_completion()
    assert [choice.index for choice in final.choices] == [0, 1]
    assert final.choices[0].message.content == final.choices[1].message.content


def test_04_id_created_and_model_are_constant_and_ids_unique(server: Running) -> None:
    client = server.client()
    heads: list[set[tuple[str, int, str]]] = []

    def read() -> None:
        heads.append({(c.id, c.created, c.model) for c in client.chat.completions.create(**chat(True))})

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(head) for head in heads] == [1] * 6
    assert len({next(iter(head))[0] for head in heads}) == 6


@pytest.mark.parametrize("options", [{}, {"stop": "STOP"}, {"n": 3}], ids=["length", "stop", "n"])
def test_05_every_choice_finishes_exactly_once_and_last(server: Running, options: dict[str, object]) -> None:
    finishes: dict[int, list[str | None]] = {}
    for chunk in server.client().chat.completions.create(**chat(True, **options)):
        for choice in chunk.choices:
            finishes.setdefault(choice.index, []).append(choice.finish_reason)
    assert len(finishes) == options.get("n", 1)
    for seen in finishes.values():
        assert seen[-1] == ("stop" if "stop" in options else "length")
        assert seen[:-1] == [None] * (len(seen) - 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stop": ["STOP", "zz"]},
        {"logprobs": True, "top_logprobs": 2},
        {"logprobs": True, "stop": "bleibt"},
        {"n": 2},
    ],
    ids=["plain", "stop", "logprobs", "logprobs-stop", "n"],
)
def test_06_a_joined_stream_equals_the_whole_answer(server: Running, options: dict[str, object]) -> None:
    client = server.client()
    whole = client.chat.completions.create(**chat(False, seed=5, **options))
    texts = [""] * len(whole.choices)
    entries: list[list[object]] = [[] for _ in texts]
    for chunk in client.chat.completions.create(**chat(True, seed=5, **options)):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.logprobs is not None:
                entries[choice.index] += choice.logprobs.content or []
    assert texts == [choice.message.content for choice in whole.choices]
    for choice, mine in zip(whole.choices, entries, strict=True):
        assert (choice.logprobs.content if choice.logprobs else []) == mine
        if choice.logprobs is not None and choice.finish_reason == "stop":
            said = b"".join(bytes(entry.bytes or []) for entry in choice.logprobs.content or [])
            assert said.decode() == choice.message.content, "logprobs must not tell more than the text"


def test_06_a_joined_stream_equals_the_whole_completion_with_logprobs(server: Running) -> None:
    client = server.client()
    asked = {"model": NAME, "prompt": "Wo?", "max_tokens": 40, "temperature": 0, "logprobs": 3, "echo": True, "n": 2}
    whole = client.completions.create(**asked)
    texts, tokens, offsets = ["", ""], [[], []], [[], []]
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens
            offsets[choice.index] += choice.logprobs.text_offset
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    assert offsets == [choice.logprobs.text_offset for choice in whole.choices]


def test_07_usage(server: Running) -> None:
    client = server.client()
    # Longer than a block, and never asked before in this module.
    ask = [{"role": "user", "content": "A question about usage that nobody has asked before."}]
    first = client.chat.completions.create(**chat(False, messages=ask)).usage
    assert first is not None and first.total_tokens == first.prompt_tokens + first.completion_tokens
    assert first.completion_tokens == LENGTH
    again = client.chat.completions.create(**chat(False, messages=ask, n=3)).usage
    assert again is not None and again.prompt_tokens_details is not None
    assert again.prompt_tokens == first.prompt_tokens and again.completion_tokens == 3 * LENGTH
    assert 0 < (again.prompt_tokens_details.cached_tokens or 0) <= again.prompt_tokens
    chunks = list(client.chat.completions.create(**chat(True, messages=ask, stream_options={"include_usage": True})))
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == LENGTH
    assert all(chunk.usage is None and chunk.choices for chunk in chunks[:-1])
    assert all(chunk.usage is None for chunk in client.chat.completions.create(**chat(True)))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**chat(False, stream_options={"include_usage": True}))
    assert caught.value.param == "stream_options"


def test_07_usage_is_null_in_the_other_chunks(server: Running) -> None:
    events = frames(server.post("/v1/chat/completions", chat(True, stream_options={"include_usage": True})))
    assert all('"usage":null' in event for event in events[:-2])
    assert '"choices":[]' in events[-2] and '"usage":{' in events[-2]


@pytest.mark.parametrize("length", range(24, 40))
def test_08_no_delta_has_half_a_character(server: Running, length: int) -> None:
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in server.client().chat.completions.create(**chat(True, max_tokens=length))
    ]
    assert not any("�" in piece for piece in pieces)
    assert SCRIPT.startswith("".join(pieces))


def test_09_an_error_in_mid_stream_is_raised_by_the_client(server: Running) -> None:
    server.executor.fault = fails_after(10, "the matrix is on fire")
    server.executor.step_s = 0.03  # what fails before anything is sent gets a status of its own
    try:
        with pytest.raises(openai.APIError, match="the matrix is on fire"):
            list(server.client().chat.completions.create(**chat(True)))
        events = frames(server.post("/v1/chat/completions", chat(True)))
    finally:
        server.executor.fault = lambda step: None
        server.executor.step_s = 0.0
    assert '"error":{' in events[-2] and events[-1] == "[DONE]"
    assert '"role":"assistant"' in events[0]
