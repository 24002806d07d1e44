"""`/v1/messages` through the `anthropic` client (behaviour 35), on a scripted model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from pydantic_core import from_json

from armillary.deployment import ServerSettings
from armillary.server.endpoint import json_response
from armillary.server.messages import block_of
from armillary.server.passages import Kind, Passage
from server.harness import NAME, SCRIPT, Running, ScriptedExecutor
from server.scripted import fails_after

ASK = [{"role": "user", "content": "Where?"}]
LENGTH = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(Path(tmp_path_factory.mktemp("messages")))
    running.wait()
    yield running
    running.stop()


def test_a_number_beyond_all_floats_leaves_the_answer_json() -> None:
    """A model may write 1e999 where its tool wants a number, and the input of a call is parsed here."""
    assert json_response({"input": from_json('{"x": 1e999}')}).body == b'{"input":{"x":null}}'


def client_of(server: Running, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def client(server: Running) -> anthropic.Anthropic:
    return client_of(server)


def asked(**options: Any) -> dict[str, Any]:
    extra = {"temperature": 0, **options.pop("extra_body", {})}
    return {"model": NAME, "messages": ASK, "max_tokens": LENGTH, "extra_body": extra, **options}


def raw(**options: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": ASK, "max_tokens": LENGTH, "temperature": 0, **options}


def test_35_a_message(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**asked())
    assert message.type == "message" and message.role == "assistant" and message.model == NAME
    assert message.stop_reason == "max_tokens" and message.stop_sequence is None
    assert message.content[0].text == SCRIPT.encode()[:LENGTH].decode("utf-8", "ignore")
    assert message.usage.output_tokens == LENGTH
    assert message._request_id


def test_35_events_come_in_order(server: Running, client: anthropic.Anthropic) -> None:
    events = list(client.messages.create(stream=True, **asked()))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert events[0].message.content == [] and events[0].message.stop_reason is None
    assert events[-2].delta.stop_reason == "max_tokens" and events[-2].usage.output_tokens == LENGTH
    for frame in server.post("/v1/messages", raw(stream=True)).text.strip().split("\n\n"):
        name, data = frame.split("\n")
        assert name.removeprefix("event: ") == json.loads(data.removeprefix("data: "))["type"]


@pytest.mark.parametrize("options", [{}, {"stop_sequences": ["zz", "STOP"]}], ids=["length", "stop"])
def test_35_the_joined_stream_equals_the_whole_message(client: anthropic.Anthropic, options: dict[str, Any]) -> None:
    whole = client.messages.create(**asked(**options, max_tokens=120))
    with client.messages.stream(**asked(**options, max_tokens=120)) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
    assert final.usage.output_tokens == whole.usage.output_tokens
    if options:
        assert (whole.stop_reason, whole.stop_sequence) == ("stop_sequence", "STOP")
        assert text == SCRIPT[: SCRIPT.index("STOP")]


def test_an_answer_that_ends_by_itself_ends_the_turn(tmp_path: Path) -> None:
    running = Running(tmp_path, ScriptedExecutor("Hier."))
    running.wait()
    try:
        message = client_of(running).messages.create(**asked(extra_body={"stop_token_ids": [ord(".")]}))
        assert message.stop_reason == "end_turn" and message.content[0].text == "Hier"
    finally:
        running.stop()


def test_counting_agrees_with_the_usage_of_the_message(client: anthropic.Anthropic) -> None:
    conversation = {
        "model": NAME,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": "x"},
                                              {"type": "text", "text": "Hi"}]},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "c"},
        ],
        "tools": [{"name": "look", "description": "Looks", "input_schema": {"type": "object", "properties": {}}}],
    }  # fmt: skip
    count = client.messages.count_tokens(**conversation).input_tokens
    first = client.messages.create(**conversation, max_tokens=2).usage
    again = client.messages.create(**conversation, max_tokens=2).usage
    assert first.input_tokens + first.cache_read_input_tokens == count
    assert again.input_tokens + again.cache_read_input_tokens == count and again.cache_read_input_tokens > 0


def test_counting_needs_no_room(client: anthropic.Anthropic) -> None:
    messages = [{"role": "user", "content": "x" * 2000}]
    assert client.messages.count_tokens(model=NAME, messages=messages).input_tokens > 2000


def test_turns_become_the_conversation_that_chat_has(server: Running) -> None:
    calls = [{"type": "tool_use", "id": "t1", "name": "look", "input": {"where": "Süd"}}]
    results = [
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "fog"}]},
        {"type": "tool_result", "tool_use_id": "t2", "content": "no eyes", "is_error": True},
        {"type": "text", "text": "And?"},
    ]
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "user", "content": "Look"},
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, *calls]},
        {"role": "user", "content": results},
    ]
    count = server.post("/v1/messages/count_tokens", {"model": NAME, "system": "S", "messages": messages}).json()
    function = {"name": "look", "arguments": '{"where":"Süd"}'}
    same = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Hello\nLook"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"id": "t1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "fog"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no eyes"},
        {"role": "user", "content": "And?"},
    ]
    assert count["input_tokens"] == server.post("/tokenize", {"messages": same}).json()["count"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"messages": [*ASK, {"role": "assistant", "content": "It is"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "'document'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]}, "thinking"),
        ({"messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "x", "content": [{"type": "image"}]}]}]}, "'image'"),
        ({"system": [{"type": "image"}]}, "system"),
        ({"temperature": 1.5}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tools": [{"name": "f", "input_schema": {"type": "array"}}]}, "parameters of a tool"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"output_config": {"effort": "max"}}, "output_config.effort"),
        ({"container": "x"}, "container"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"n": 2}, "n is"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(server: Running, change: dict[str, Any], named: str) -> None:
    response = server.post("/v1/messages", raw(**change))
    assert response.status_code == 400, response.text
    body = response.json()
    assert set(body) == {"type", "error"} and body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error" and named in body["error"]["message"], body


def test_every_failure_has_the_shape(server: Running, tmp_path: Path, client: anthropic.Anthropic) -> None:
    for response, status, kind in (
        (server.post("/v1/messages", content=b"{"), 400, "invalid_request_error"),
        (server.post("/v1/messages", raw(model="other")), 404, "not_found_error"),
        (server.post("/v1/messages/nowhere", {}), 404, "not_found_error"),
        (server.get("/v1/messages"), 405, "invalid_request_error"),
    ):
        assert response.status_code == status
        assert response.json()["type"] == "error" and response.json()["error"]["type"] == kind
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**asked(messages=[{"role": "user", "content": "x" * 600}]))
    assert "maximum context length" in str(caught.value)
    settings = ServerSettings(port=0, drain_s=1.0, api_keys=("right",), max_body=3000)
    guarded = Running(tmp_path, settings=settings)
    guarded.wait()
    try:
        with pytest.raises(anthropic.AuthenticationError) as wrong:
            client_of(guarded, "wrong").messages.create(**asked())
        assert wrong.value.body["error"]["type"] == "authentication_error"
        assert client_of(guarded, "right").messages.create(**asked()).content
        with pytest.raises(anthropic.RequestTooLargeError) as large:
            client_of(guarded, "right").messages.create(**asked(system="x" * 4000))
        assert large.value.body["error"]["type"] == "request_too_large"
    finally:
        guarded.stop()


def test_35_a_failure_in_mid_stream_is_an_error_event(tmp_path: Path) -> None:
    executor = ScriptedExecutor(step_s=0.05)
    running = Running(tmp_path, executor)
    running.wait()
    try:
        executor.fault = fails_after(5, "out of ideas")
        kinds = []
        with pytest.raises(anthropic.APIStatusError) as caught:
            for event in client_of(running).messages.create(stream=True, **asked()):
                kinds.append(event.type)
        assert kinds[0] == "message_start" and "out of ideas" in str(caught.value)
        assert caught.value.body["error"]["type"] == "api_error"
        with pytest.raises(anthropic.InternalServerError):
            client_of(running).messages.create(**asked())
    finally:
        running.stop()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_30_leaving_frees_the_blocks(tmp_path: Path, stream: bool) -> None:
    running = Running(tmp_path, ScriptedExecutor(step_s=0.02))
    running.wait()
    try:
        if stream:
            with client_of(running).messages.create(stream=True, **asked(max_tokens=400)) as events:
                for event in events:
                    if event.type == "content_block_delta":
                        break
        else:
            leaving = client_of(running).with_options(timeout=0.5)
            with pytest.raises(anthropic.APITimeoutError):
                leaving.messages.create(**asked(max_tokens=400))
        running.quiet(5.0)
    finally:
        running.stop()


def test_a_silence_is_kept_alive_after_the_beginning(tmp_path: Path) -> None:
    running = Running(tmp_path, ScriptedExecutor(step_s=0.4))
    running.wait()
    try:
        hint = {"x-stainless-read-timeout": "0.2"}
        text = running.post("/v1/messages", raw(stream=True, max_tokens=2), headers=hint).text
        events = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
        assert events[0] == "message_start" and "ping" in events[1:] and events[-1] == "message_stop"
        asked = {"model": NAME, "input": "x", "max_output_tokens": 2, "stream": True}
        text = running.post("/v1/responses", asked, headers=hint).text
        assert text.startswith("event: response.created") and "\n\n: keep-alive\n\n" in text
        assert text.count("event: response.created") == 1
    finally:
        running.stop()


@pytest.mark.parametrize(
    "arguments", ['{"a": "\\ud800"}', '{"a": ' + "[" * 250 + "]" * 250 + "}", '{"a": ' + "1" * 5000 + "}"]
)
def test_arguments_that_parsers_refuse_are_given_as_they_were_written(arguments: str) -> None:
    passage = Passage(0, next(kind for kind in Kind if kind not in (Kind.TEXT, Kind.REASONING)), [arguments], name="f")
    assert block_of(passage)["input"] == {"json": arguments}
