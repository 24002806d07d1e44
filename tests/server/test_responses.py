"""`/v1/responses` through the `openai` client (behaviour 35), on a scripted model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from armillary.deployment import ServerSettings
from server.harness import NAME, Running, ScriptedExecutor
from server.scripted import fails_after

LENGTH = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(Path(tmp_path_factory.mktemp("responses")))
    running.wait()
    yield running
    running.stop()


def asked(**options: Any) -> dict[str, Any]:
    return {"model": NAME, "input": "Where?", "temperature": 0, "max_output_tokens": LENGTH, **options}


def prompt_of(server: Running, messages: list[dict[str, Any]]) -> list[int]:
    return server.post("/tokenize", {"messages": messages}).json()["tokens"]


def sent(server: Running, body: dict[str, Any]) -> tuple[list[int], openai.types.responses.Response]:
    """The prompt that reaches the engine, and the response."""
    seen: list[list[int]] = []

    def look(step: Any) -> None:
        for entry in step.entries:
            seen.append(list(entry.sequence.request.prompt))

    server.executor.fault = look
    try:
        response = server.client().responses.create(**body)
    finally:
        server.executor.fault = lambda step: None
    return seen[0], response


def test_35_events_come_in_order_and_completed_is_last_with_usage(server: Running) -> None:
    events = list(server.client().responses.create(**asked(stream=True)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1].response
    assert last.incomplete_details.reason == "max_output_tokens" and last.status == "incomplete"
    assert last.usage.output_tokens == LENGTH and last.usage.total_tokens == LENGTH + last.usage.input_tokens
    assert last.output[0].status == "incomplete"
    ids = {getattr(event, "item_id", None) for event in events} - {None}
    assert ids == {last.output[0].id}


def test_35_every_event_is_named_and_has_its_type(server: Running) -> None:
    raw = server.post("/v1/responses", asked(stream=True)).text
    assert "[DONE]" not in raw
    for frame in raw.strip().split("\n\n"):
        name, data = frame.split("\n")
        assert name.removeprefix("event: ") == json.loads(data.removeprefix("data: "))["type"]


@pytest.mark.parametrize(
    "options", [{}, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}], ids=["plain", "logprobs"]
)
def test_35_the_joined_stream_equals_the_whole_response(server: Running, options: dict[str, Any]) -> None:
    client = server.client()
    whole = client.responses.create(**asked(**options))
    events = list(client.responses.create(**asked(stream=True, **options)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text
    streamed = json.loads(events[-1].response.model_dump_json())
    plain = json.loads(whole.model_dump_json())
    plain["usage"]["input_tokens_details"] = streamed["usage"]["input_tokens_details"]  # the second finds a prefix
    for changing in ("id", "created_at", "completed_at"):
        del streamed[changing], plain[changing]
    del streamed["output"][0]["id"], plain["output"][0]["id"]
    assert streamed == plain
    deltas = [entry for event in events if event.type == "response.output_text.delta" for entry in event.logprobs]
    done = whole.output[0].content[0].logprobs
    assert [entry.token for entry in deltas] == [entry.token for entry in done]
    assert bool(done) == bool(options) and all(len(entry.top_logprobs) == 2 for entry in done)


def test_35_the_stream_helper_gives_the_same_text(tmp_path: Path) -> None:
    executor = ScriptedExecutor("Hier.")
    running = Running(tmp_path, executor)
    running.wait()
    try:
        options = {"model": NAME, "input": "Where?", "temperature": 0, "extra_body": {"stop_token_ids": [ord(".")]}}
        with running.client().responses.stream(**options) as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            final = stream.get_final_response()
        assert text == final.output_text == "Hier" and final.status == "completed"
        assert final.incomplete_details is None and final.output[0].status == "completed"
        assert final.usage.output_tokens == 5
    finally:
        running.stop()


def test_items_become_the_conversation_that_chat_has(server: Running) -> None:
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"role": "user", "content": "Hello"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi", "annotations": []}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"},
                                                        {"type": "input_text", "text": "b"}]},
    ]  # fmt: skip
    prompt, response = sent(server, asked(input=items, instructions="Speak."))
    assert prompt == prompt_of(
        server,
        [
            {"role": "system", "content": "Speak."},
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "a\nb"},
        ],
    )
    assert response.instructions == "Speak."


def test_a_response_is_kept_and_gone_on_from(server: Running) -> None:
    client = server.client()
    first = client.responses.create(**asked(instructions="Only now."))
    assert first.store and client.responses.retrieve(first.id).output_text == first.output_text
    second_prompt, second = sent(server, asked(input="And then?", previous_response_id=first.id))
    expected = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And then?"},
    ]
    assert second_prompt == prompt_of(server, expected), "instructions are not handed on"
    assert second.previous_response_id == first.id
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**asked(previous_response_id=first.id))
    assert caught.value.param == "previous_response_id"
    third_prompt, _ = sent(server, asked(input="So?", previous_response_id=second.id))
    expected += [{"role": "assistant", "content": second.output_text}, {"role": "user", "content": "So?"}]
    assert third_prompt == prompt_of(server, expected), "what went on from a deleted response keeps its conversation"


def test_a_response_that_is_not_to_be_kept_is_not(server: Running) -> None:
    response = server.client().responses.create(**asked(store=False))
    assert response.store is False
    assert server.get(f"/v1/responses/{response.id}").status_code == 404


def test_the_store_is_bounded_and_forgets_what_was_not_used_for_longest(tmp_path: Path) -> None:
    running = Running(tmp_path, settings=ServerSettings(port=0, drain_s=1.0, response_store=8000))
    running.wait()
    try:
        client = running.client()
        ids = []
        for _ in range(12):
            ids.append(client.responses.create(**asked(max_output_tokens=2)).id)
            assert running.get(f"/v1/responses/{ids[0]}").status_code == 200, "used, so kept"
        found = [running.get(f"/v1/responses/{one}").status_code for one in ids]
        assert found[0] == found[-1] == 200 and found.count(404) >= 3
        large = client.responses.create(**asked(input="x" * 400, instructions="y" * 9000, max_output_tokens=1))
        assert large.store is False
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded"
    finally:
        running.stop()


def test_a_response_belongs_to_its_key(tmp_path: Path) -> None:
    running = Running(tmp_path, settings=ServerSettings(port=0, drain_s=1.0, api_keys=("one", "two")))
    running.wait()
    try:
        mine = running.client(api_key="one").responses.create(**asked())
        assert running.client(api_key="one").responses.retrieve(mine.id).id == mine.id
        with pytest.raises(openai.NotFoundError):
            running.client(api_key="two").responses.retrieve(mine.id)
        with pytest.raises(openai.BadRequestError):
            running.client(api_key="two").responses.create(**asked(previous_response_id=mine.id))
    finally:
        running.stop()


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "input[0].encrypted_content"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 2**40}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "a"}] * 2}, "tools[1].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"background": True}, "background"),
        ({"conversation": "x"}, "conversation"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"n": 2}, "n"),
        ({"tempo": 2}, "tempo"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(server: Running, change: dict[str, Any], param: str) -> None:
    response = server.post("/v1/responses", {**asked(), **change})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param, error
    assert param.split(".")[0].split("[")[0] in error["message"]


def test_too_long_a_conversation_is_refused_in_the_known_words(server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().responses.create(**asked(input="x" * 600))
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "input"
    assert caught.value.body["message"].startswith("This model's maximum context length is")


def test_35_a_failure_in_mid_stream_is_told_in_typed_events(tmp_path: Path) -> None:
    executor = ScriptedExecutor(step_s=0.05)
    running = Running(tmp_path, executor)
    running.wait()
    try:
        executor.fault = fails_after(5, "out of ideas")
        events = list(running.client().responses.create(**asked(stream=True)))
        assert [event.type for event in events[-2:]] == ["error", "response.failed"]
        failed = events[-1].response
        assert failed.status == "failed" and "out of ideas" in failed.error.message
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert running.get(f"/v1/responses/{failed.id}").status_code == 404
        with pytest.raises(openai.InternalServerError):
            running.client().responses.create(**asked())
    finally:
        running.stop()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_30_leaving_frees_the_blocks(tmp_path: Path, stream: bool) -> None:
    running = Running(tmp_path, ScriptedExecutor(step_s=0.02))
    running.wait()
    try:
        client = running.client()
        if stream:
            with client.responses.create(**asked(stream=True, max_output_tokens=400)) as events:
                for event in events:
                    if event.type == "response.output_text.delta":
                        break
        else:
            leaving = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=0.5)
            thread = threading.Thread(
                target=lambda: pytest.raises(
                    openai.APITimeoutError, leaving.responses.create, **asked(max_output_tokens=400)
                )
            )
            thread.start()
            thread.join()
        running.quiet(5.0)
    finally:
        running.stop()
