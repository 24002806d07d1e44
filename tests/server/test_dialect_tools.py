"""Tools, reasoning and structured text in both dialects with typed events, through their own clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import openai
import pytest
from pydantic import BaseModel, Field

from server.harness import NAME, Running
from server.saying import THINK_TEMPLATE, Saying, serve_random, serve_saying
from server.scripted import TEMPLATE

SCHEMA = {
    "type": "object",
    "properties": {"harbour": {"type": "string"}},
    "required": ["harbour"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "name": "tide_of", "description": "The tide.", "parameters": SCHEMA}
CLOCK = {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"name": "tide_of", "description": "The tide.", "input_schema": SCHEMA},
         {"name": "clock", "input_schema": {"type": "object", "properties": {}}}]  # fmt: skip
CALL = '<tool_call>\n{"name": "tide_of", "arguments": {"harbour": "Port Ellin 🏝️"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
THOUGHT = "<think>\nThe tide, then.\n</think>\n\n"
EXECUTOR = Saying()
ASK = "How high is the tide?"


class Tide(BaseModel):
    kind: Literal["spring", "neap"]
    day: int = Field(ge=1, le=31)


class Mood(BaseModel):
    """Nothing that the client of Anthropic takes out of a schema, as it does with bounds."""

    kind: Literal["spring", "neap"]
    high: bool


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from serve_saying(Path(tmp_path_factory.mktemp("saying")), THINK_TEMPLATE, EXECUTOR)


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from serve_random(Path(tmp_path_factory.mktemp("random")), TEMPLATE)


@pytest.fixture
def says() -> Iterator[Any]:
    def say(text: str) -> None:
        EXECUTOR.text = text
        EXECUTOR.prompts.clear()

    yield say
    EXECUTOR.text = ""


def claude(server: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60)


def plain(items: Any) -> list[dict[str, Any]]:
    """Output items without what is new in each response."""
    return [item.model_dump(exclude={"id", "call_id"}, exclude_none=True) for item in items]


# ---------------------------------------------------------------- responses


def test_35_reasoning_text_and_calls_are_items_in_order(server: Running, says: Any) -> None:
    says(THOUGHT + "I look.\n" + CALL + "\n" + OTHER)
    asked = {"model": NAME, "input": ASK, "tools": [TOOL, CLOCK], "temperature": 0}
    whole = server.client().responses.create(**asked)
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call", "function_call"]
    reasoning, message, tide, clock = whole.output
    assert reasoning.content[0].text.strip() == "The tide, then." and message.content[0].text.strip() == "I look."
    assert (tide.name, json.loads(tide.arguments)) == ("tide_of", {"harbour": "Port Ellin 🏝️"})
    assert (clock.name, json.loads(clock.arguments)) == ("clock", {}) and tide.call_id != clock.call_id
    assert whole.status == "completed" and whole.usage.output_tokens_details.reasoning_tokens > 0
    events = list(server.client().responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert plain(events[-1].response.output) == plain(whole.output)
    joined: dict[int, str] = {}
    for event in events:
        if event.type.endswith(".delta"):
            joined[event.output_index] = joined.get(event.output_index, "") + event.delta
    assert joined == {
        0: reasoning.content[0].text, 1: message.content[0].text, 2: tide.arguments, 3: clock.arguments,
    }  # fmt: skip
    kinds = [event.type for event in events if not event.type.endswith(".delta")]
    part = ["response.content_part.added", "response.X.done", "response.content_part.done"]
    item = ["response.output_item.added", "response.output_item.done"]
    call = [item[0], "response.function_call_arguments.done", item[1]]
    assert kinds == [
        "response.created", "response.in_progress",
        item[0], part[0], "response.reasoning_text.done", part[2], item[1],
        item[0], part[0], "response.output_text.done", part[2], item[1],
        *call, *call, "response.completed",
    ]  # fmt: skip


@pytest.mark.parametrize("kept", [False, True], ids=["items", "previous_response_id"])
def test_35_a_tool_loop_in_items_is_the_one_that_chat_has(server: Running, says: Any, kept: bool) -> None:
    client = server.client()
    says(THOUGHT + CALL)
    first = client.responses.create(model=NAME, input=ASK, tools=[TOOL, CLOCK], temperature=0)
    call = first.output[-1]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "3 m"}
    says("Three metres.")
    if kept:
        asked: dict[str, Any] = {"previous_response_id": first.id, "input": [result]}
    else:
        asked = {"input": [{"role": "user", "content": ASK}, *first.output, result]}
    last = client.responses.create(model=NAME, tools=[TOOL, CLOCK], temperature=0, **asked)
    assert last.output_text == "Three metres."
    prompt = EXECUTOR.prompts[0]
    called = {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    messages = [
        {"role": "user", "content": ASK},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": first.output[0].content[0].text,
            "tool_calls": [called],
        },
        {"role": "tool", "tool_call_id": call.call_id, "content": "3 m"},
    ]
    tools = [{"type": "function", "function": {k: v for k, v in one.items() if k != "type"}} for one in (TOOL, CLOCK)]
    assert list(prompt) == server.post("/tokenize", {"messages": messages, "tools": tools}).json()["tokens"]


def test_35_the_stream_helper_parses_calls(server: Running, says: Any) -> None:
    class TideOf(BaseModel):
        harbour: str

    says(CALL)
    tool = openai.pydantic_function_tool(TideOf, name="tide_of")["function"]
    tool = {"type": "function", "strict": False, **{k: v for k, v in tool.items() if k != "strict"}}
    with server.client().responses.stream(model=NAME, input=ASK, tools=[tool], temperature=0) as stream:
        for event in stream:
            if event.type == "response.function_call_arguments.delta":
                assert event.snapshot.endswith(event.delta)
        final = stream.get_final_response()
    assert json.loads(final.output[0].arguments) == {"harbour": "Port Ellin 🏝️"}


def test_35_parse_gives_an_object_of_the_schema(random: Running) -> None:
    asked = {"model": NAME, "input": ASK, "text_format": Tide, "max_output_tokens": 400}
    whole = random.client().responses.parse(**asked)
    assert isinstance(whole.output_parsed, Tide)
    with random.client().responses.stream(**asked) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_response().output_parsed, Tide)


def test_35_parse_gives_arguments_of_the_tool(random: Running) -> None:
    asked: dict[str, Any] = {"model": NAME, "input": ASK, "tools": [openai.pydantic_function_tool(Tide)]}
    asked |= {"tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 400}
    call = random.client().responses.parse(**asked).output[-1]
    assert call.type == "function_call" and isinstance(call.parsed_arguments, Tide)
    with random.client().responses.stream(**asked) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_response().output[-1].parsed_arguments, Tide)


@pytest.mark.parametrize(
    ("choice", "least"), [("required", {"tide_of", "clock"}), ({"type": "function", "name": "clock"}, {"clock"})]
)
def test_35_responses_choose_tools(random: Running, choice: Any, least: set[str]) -> None:
    asked = {"model": NAME, "input": ASK, "tools": [TOOL, CLOCK], "tool_choice": choice, "max_output_tokens": 800}
    answer = random.client().responses.create(**asked, parallel_tool_calls=False, extra_body={"seed": 3})
    calls = [item for item in answer.output if item.type == "function_call"]
    assert calls and {call.name for call in calls} <= least
    assert answer.tool_choice == choice or answer.tool_choice.name == "clock"


def test_an_unsupported_schema_is_named_in_the_words_of_the_dialect(random: Running) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "format": "tide-table"}}, "required": ["a"]}
    schema["properties"]["b"] = {"not": {"type": "string"}}
    form = {"type": "json_schema", "name": "x", "schema": schema}
    response = random.post("/v1/responses", {"model": NAME, "input": ASK, "text": {"format": form}})
    assert response.status_code == 400 and response.json()["error"]["param"].startswith("text.format")
    body = {"model": NAME, "max_tokens": 9, "messages": [{"role": "user", "content": ASK}]}
    config = {"format": {"type": "json_schema", "schema": schema}}
    response = random.post("/v1/messages", {**body, "output_config": config})
    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"


def test_reasoning_can_be_turned_off(server: Running, says: Any) -> None:
    says("Done.")
    off = server.client().responses.create(model=NAME, input=ASK, reasoning={"effort": "none"})
    assert off.reasoning.effort == "none" and bytes(EXECUTOR.prompts[0][-10:]).endswith(b"</think>\n\n")
    says("Done.")
    message = claude(server).messages.create(
        model=NAME, max_tokens=50, messages=[{"role": "user", "content": ASK}], thinking={"type": "disabled"}
    )
    assert message.content[0].text == "Done." and bytes(EXECUTOR.prompts[0][-10:]).endswith(b"</think>\n\n")


@pytest.mark.parametrize("effort", ["low", "medium", "high", "xhigh", "max"])
def test_every_effort_of_the_dialect_is_obeyed(server: Running, says: Any, effort: str) -> None:
    says(THOUGHT + "Done.")
    message = claude(server).messages.create(
        model=NAME,
        max_tokens=50,
        messages=[{"role": "user", "content": ASK}],
        extra_body={"output_config": {"effort": effort}},
    )
    assert [block.type for block in message.content] == ["thinking", "text"]


# ---------------------------------------------------------------- messages


def test_35_thinking_text_and_tools_are_blocks_in_order(server: Running, says: Any) -> None:
    says(THOUGHT + "I look.\n" + CALL + "\n" + OTHER)
    asked = {"model": NAME, "max_tokens": 900, "messages": [{"role": "user", "content": ASK}], "tools": TOOLS}
    client = claude(server)
    whole = client.messages.create(**asked)
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use", "tool_use"]
    thinking, text, tide, clock = whole.content
    assert thinking.thinking.strip() == "The tide, then." and text.text.strip() == "I look."
    assert (tide.name, tide.input) == ("tide_of", {"harbour": "Port Ellin 🏝️"})
    assert (clock.name, clock.input) == ("clock", {})
    assert whole.stop_reason == "tool_use"
    with client.messages.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert plain(final.content) == plain(whole.content) and final.stop_reason == "tool_use"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4
    raw = server.post("/v1/messages", {**asked, "stream": True}).text
    events = [json.loads(line.removeprefix("data: ")) for line in raw.splitlines() if line.startswith("data: ")]
    assert [event["index"] for event in events if event["type"] == "content_block_start"] == [0, 1, 2, 3]


def test_35_a_tool_loop_in_blocks(server: Running, says: Any) -> None:
    client = claude(server)
    messages: list[Any] = [{"role": "user", "content": ASK}]
    says(THOUGHT + CALL)
    first = client.messages.create(model=NAME, max_tokens=900, messages=messages, tools=TOOLS)
    assert first.stop_reason == "tool_use"
    call = first.content[-1]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "3 m"}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    says("Three metres.")
    last = client.messages.create(model=NAME, max_tokens=900, messages=messages, tools=TOOLS)
    assert last.content[0].text == "Three metres." and last.stop_reason == "end_turn"
    assert b"3 m" in bytes(token for token in EXECUTOR.prompts[0] if token < 256)
    assert client.messages.count_tokens(model=NAME, messages=messages, tools=TOOLS).input_tokens == len(
        EXECUTOR.prompts[0]
    )


@pytest.mark.parametrize(
    ("choice", "least"), [({"type": "any"}, {"tide_of", "clock"}), ({"type": "tool", "name": "clock"}, {"clock"})]
)
def test_35_messages_choose_tools(random: Running, choice: dict[str, Any], least: set[str]) -> None:
    message = claude(random).messages.create(
        model=NAME,
        max_tokens=800,
        messages=[{"role": "user", "content": ASK}],
        tools=TOOLS,
        tool_choice={**choice, "disable_parallel_tool_use": True},
        extra_body={"seed": 3},
    )
    calls = [block for block in message.content if block.type == "tool_use"]
    assert {call.name for call in calls} <= least and len(calls) == 1
    assert all(isinstance(call.input, dict) for call in calls)


def test_35_messages_parse_gives_an_object_of_the_schema(random: Running) -> None:
    message = claude(random).messages.parse(
        model=NAME, max_tokens=400, messages=[{"role": "user", "content": ASK}], output_format=Mood
    )
    assert isinstance(message.parsed_output, Mood)


def test_a_call_that_is_cut_comes_back_as_far_as_it_goes(server: Running, says: Any) -> None:
    says(CALL)
    asked = {"model": NAME, "messages": [{"role": "user", "content": ASK}], "tools": TOOLS, "max_tokens": 40}
    message = claude(server).messages.create(**asked)
    assert message.stop_reason == "max_tokens" and message.content, "a cut call is text, and never dropped"
    response = server.client().responses.create(model=NAME, input=ASK, tools=[TOOL], max_output_tokens=40)
    assert response.status == "incomplete" and response.output[-1].status == "incomplete"
