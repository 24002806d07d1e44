"""Calls that a grammar enforces (behaviour 26): even a model of random weights writes them as they must be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from armillary.models.calls.choose import FORMATS, ReplyFormat
from armillary.server.tools import Tool, offer
from server.harness import NAME, Running
from server.saying import serve_random
from server.scripted import TEMPLATE

ASK = [{"role": "user", "content": "Where are the Isles?"}]


def tool(name: str, strict: bool | None = None, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": name, "parameters": {**parameters, "additionalProperties": False}}
    return {"type": "function", "function": function if strict is None else {**function, "strict": strict}}


KIND = {"enum": ["spring", "neap"]}
DAY = {"type": "integer", "minimum": 1, "maximum": 31}
TIDE, CLOCK = tool("tide_of", kind=KIND, day=DAY), tool("clock")
PLACE = {"type": "object", "properties": {"kind": KIND}, "required": ["kind"], "additionalProperties": False}
MAP = tool("map", places={"type": "array", "items": PLACE, "minItems": 2, "maxItems": 2})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from serve_random(Path(tmp_path_factory.mktemp("random")), TEMPLATE)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    template = TEMPLATE.replace(
        "<|im_start|>assistant\n{% endif %}",
        "<|im_start|>assistant\n<think>\n{% if not long %}</think>\n\n{% endif %}{% endif %}",
    )
    yield from serve_random(Path(tmp_path_factory.mktemp("thinker")), template)


def chat(server: Running, **options: Any) -> Any:
    asked = {"model": NAME, "messages": ASK, "temperature": 1, "max_tokens": 400, **options}
    return server.client().chat.completions.create(**asked)


def calls(answer: Any) -> list[tuple[str, Any]]:
    message = answer.choices[0].message
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


def check(name: str, arguments: dict[str, Any]) -> None:
    """Arguments that match the schema of the tool of that name."""
    if name == "tide_of":
        assert list(arguments) == ["kind", "day"] and arguments["kind"] in KIND["enum"] and 1 <= arguments["day"] <= 31
    elif name == "map":
        assert len(arguments["places"]) == 2 and all(place["kind"] in KIND["enum"] for place in arguments["places"])
    else:
        assert name == "clock" and arguments == {}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_26_required_means_at_least_one_call(server: Running, seed: int, stream: bool) -> None:
    options = {"tools": [TIDE, CLOCK, MAP], "tool_choice": "required", "seed": seed, "parallel_tool_calls": False}
    answer = chat(server, **options)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    ((name, arguments),) = calls(answer)
    check(name, arguments)
    if stream:
        pieces = [
            piece
            for chunk in chat(server, **options, stream=True)
            for choice in chunk.choices
            for piece in choice.delta.tool_calls or []
        ]
        assert pieces[0].function.name == name and all(piece.index == 0 for piece in pieces)
        joined = "".join(piece.function.arguments for piece in pieces)
        assert joined == choice.message.tool_calls[0].function.arguments
        assert len(pieces) > 2 or arguments == {}, "arguments go out while they are being written"


def test_26_required_allows_several(server: Running) -> None:
    found = 0
    for seed in range(8):
        answer = chat(server, tools=[CLOCK], tool_choice="required", seed=seed)
        if answer.choices[0].finish_reason == "length":
            continue
        assert all(call == ("clock", {}) for call in calls(answer))
        found = max(found, len(calls(answer)))
    assert 1 <= found <= 16


@pytest.mark.parametrize("name", ["tide_of", "clock", "map"])
def test_26_a_named_tool_is_the_one_that_is_called(server: Running, name: str) -> None:
    choice = {"type": "function", "function": {"name": name}}
    answer = chat(server, tools=[TIDE, CLOCK, MAP], tool_choice=choice, temperature=0)
    ((called, arguments),) = calls(answer)
    assert called == name and answer.choices[0].finish_reason == "tool_calls"
    check(name, arguments)


@pytest.mark.parametrize("about", [{}, {"parameters": {}}], ids=["absent", "empty"])
def test_26_a_tool_without_parameters_is_called_with_none(server: Running, about: dict[str, Any]) -> None:
    ping = {"type": "function", "function": {"name": "ping", **about}}
    for seed in range(3):
        answer = chat(server, tools=[ping, CLOCK], tool_choice="required", parallel_tool_calls=False, seed=seed)
        ((name, arguments),) = calls(answer)
        assert name in ("ping", "clock") and arguments == {}
    strict = Tool.model_validate(tool("tide_of", strict=True, kind=KIND))
    beside = offer([Tool.model_validate(ping), strict], "auto", None)  # a grammar for the sake of the strict one
    assert beside is not None
    wanted = beside.wanted(ReplyFormat(FORMATS["hermes"]), enforced=True)
    assert wanted is not None and wanted.schemas["ping"]["additionalProperties"] is False


def test_26_allowed_tools_are_the_only_ones_called(server: Running) -> None:
    """All tools are shown, some may be called."""
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "clock"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    for seed in range(4):
        answer = chat(server, tools=[TIDE, CLOCK], tool_choice=choice, seed=seed, parallel_tool_calls=False)
        assert calls(answer) == [("clock", {})]
    allowed["tools"] = [{"type": "function", "function": {"name": "other"}}]
    with pytest.raises(openai.BadRequestError) as caught:
        chat(server, tools=[TIDE, CLOCK], tool_choice=choice)
    assert caught.value.param == "tool_choice"


def test_26_several_choices_each_have_their_call(server: Running) -> None:
    answer = chat(server, tools=[CLOCK], tool_choice="required", n=3, parallel_tool_calls=False)
    ids = {call.id for choice in answer.choices for call in choice.message.tool_calls}
    assert len(ids) == 3 and {choice.finish_reason for choice in answer.choices} == {"tool_calls"}
    server.quiet()


def test_26_strict_tools_are_held_to_their_schema_wherever_the_model_calls(server: Running) -> None:
    """Biased towards a call: the first letters of one are all that this model can say."""
    bias = {str(byte): 30 for byte in b"<"} | {"258": -100}
    strict = tool("tide_of", strict=True, kind=KIND, day=DAY)
    asked = {"tools": [strict], "logit_bias": bias, "temperature": 0, "parallel_tool_calls": False}
    answer = chat(server, **asked, stop=["</tool_call>"], max_tokens=150)
    if answer.choices[0].message.tool_calls:  # chance decides whether it calls; the schema holds if it does
        check(*calls(answer)[0])
    free = chat(server, tools=[strict], temperature=0, max_tokens=20)
    assert free.choices[0].finish_reason in ("length", "stop"), "text is still free"


def test_26_cut_for_its_length(server: Running) -> None:
    answer = chat(server, tools=[MAP], tool_choice="required", max_tokens=60)
    choice = answer.choices[0]
    assert choice.finish_reason == "length"
    (call,) = choice.message.tool_calls
    assert call.function.arguments.startswith('{"places": [')


def test_26_parsing_helpers_of_the_client(server: Running) -> None:
    class Tide(BaseModel):
        day: int

    asked = {"model": NAME, "messages": ASK, "tools": [openai.pydantic_function_tool(Tide, name="tide")]}
    named = {"type": "function", "function": {"name": "tide"}}
    client = server.client().chat.completions
    parsed = client.parse(**asked, tool_choice=named, seed=5, max_tokens=400)
    (call,) = parsed.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Tide)
    with client.stream(**asked, tool_choice=named, seed=5, max_tokens=400) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert len(done) == 1 and done[0].parsed_arguments == call.function.parsed_arguments


def test_26_a_loop_of_tools_ends(server: Running) -> None:
    """As agents do it: ask, call, answer the call, ask again."""
    messages: list[Any] = list(ASK)
    for turn in range(3):
        choice = "required" if turn < 2 else "none"
        asked = {"tools": [CLOCK], "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 60}
        reply = chat(server, messages=messages, **asked)
        messages.append(reply.choices[0].message)
        for call in reply.choices[0].message.tool_calls or []:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "noon"})
    assert [m.role if hasattr(m, "role") else m["role"] for m in messages] == [
        "user", "assistant", "tool", "assistant", "tool", "assistant",
    ]  # fmt: skip


@pytest.mark.parametrize("long", [False, True])
def test_28_a_grammar_begins_where_reasoning_ends(thinker: Running, long: bool) -> None:
    """The prompt opens the reasoning, and closes it or leaves that to the model, which does not get round to it."""
    named = {"type": "function", "function": {"name": "tide_of"}}
    extra = {"extra_body": {"chat_template_kwargs": {"long": long}}, "max_tokens": 100}
    answer = chat(thinker, tools=[TIDE], tool_choice=named, **extra)
    message = answer.choices[0].message
    if long:
        assert answer.choices[0].finish_reason == "length" and not message.tool_calls
        assert answer.usage.completion_tokens_details.reasoning_tokens == 100
    else:
        check(*calls(answer)[0])
