"""Tools with the bundled model, which was trained on four of them: loops of agents, the helpers of the client, levels.

What it answers may differ from one training to the next, so nothing here hangs on an answer being right, only on
most of many questions being answered by a call.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from armillary.runtime.partner import RemotePartner, Wishes, answers
from armillary.world.evaluate import LONGEST_ANSWER, Question, evaluate
from armillary.world.tasks.tools import CALCULATE, DISTANCE, LOOK_UP, PRICE, parse_call
from server.deployed import Deployed

TOOLS = [CALCULATE, LOOK_UP, PRICE, DISTANCE]
QUESTIONS = [
    ("What is 34 * 27?", "calculate"),
    ("Calculate 512 + 77.", "calculate"),
    ("Work out 900 - 41.", "calculate"),
    ("How far is it from Ellin to Marrow?", "distance"),
    ("What does salt cost in Ellin?", "price"),
    ("Look up the trade of Anna Reed.", "look_up"),
]
SETTINGS = {"max_context": 1024, "kv_blocks": 512, "max_running": 16, "threads": 1}


@pytest.fixture(scope="module")
def server() -> Iterator[Deployed]:
    running = Deployed(["isles"], SETTINGS)
    running.wait()
    yield running
    running.stop()


def chat(server: Deployed, question: str, **options: Any) -> Any:
    messages = [{"role": "user", "content": question}]
    asked = {"model": "isles", "messages": messages, "tools": TOOLS, "temperature": 0, "max_tokens": LONGEST_ANSWER}
    return server.client().chat.completions.create(**{**asked, **options})


def run(name: str, arguments: dict[str, str]) -> str:
    """What a tool answers."""
    if name == "calculate":
        try:
            a, operator, b = arguments["expression"].split()
            return str({"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[operator])
        except (ValueError, KeyError):
            return "0"
    return {"look_up": "a cooper", "price": "12 coins", "distance": "31 miles"}[name]


def test_26_the_bundled_model_calls_and_says_what_came_back(server: Deployed) -> None:
    """The loop of an agent, as every guide to OpenAI's client has it."""
    called = finished = 0
    for question, tool in QUESTIONS:
        reply = chat(server, question).choices[0]
        if reply.finish_reason != "tool_calls":
            continue
        assert reply.message.content is None
        (call,) = reply.message.tool_calls
        called += call.function.name == tool
        arguments = json.loads(call.function.arguments)
        assert isinstance(arguments, dict)
        result = run(call.function.name, arguments)
        messages = [
            {"role": "user", "content": question},
            reply.message,
            {"role": "tool", "tool_call_id": call.id, "content": result},
        ]
        final = chat(server, question, messages=messages).choices[0]
        finished += final.finish_reason == "stop" and result.split()[0] in (final.message.content or "")
    assert called >= 4 and finished >= 3, (called, finished)


def test_06_streamed_calls_equal_whole_ones(server: Deployed) -> None:
    for question, _ in QUESTIONS[::2]:
        whole = chat(server, question).choices[0].message
        pieces = [p for c in chat(server, question, stream=True) for x in c.choices for p in x.delta.tool_calls or []]
        calls = [call.function for call in whole.tool_calls or []]
        assert [piece.function.name for piece in pieces if piece.id] == [call.name for call in calls]
        assert "".join(piece.function.arguments for piece in pieces) == "".join(call.arguments for call in calls)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool["function"]["name"])
def test_26_a_named_tool_is_called_with_its_arguments_whatever_was_asked(
    server: Deployed, tool: dict[str, Any]
) -> None:
    function = tool["function"]
    choice = {"type": "function", "function": {"name": function["name"]}}
    reply = chat(server, "Good morning!", tool_choice=choice, max_tokens=200).choices[0]
    (call,) = reply.message.tool_calls
    assert call.function.name == function["name"]
    if reply.finish_reason == "tool_calls":
        assert set(function["parameters"]["required"]) <= set(json.loads(call.function.arguments))


def test_26_the_stream_helper_with_tools(server: Deployed) -> None:
    asked = {"model": "isles", "messages": [{"role": "user", "content": "What is 34 * 27?"}], "tools": TOOLS}
    with server.client().chat.completions.stream(**asked, temperature=0, max_tokens=LONGEST_ANSWER) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0]
    whole = chat(server, "What is 34 * 27?").choices[0]
    assert final.finish_reason == whole.finish_reason and final.message.content == whole.message.content
    assert ("tool_calls.function.arguments.done" in kinds) == (final.finish_reason == "tool_calls")


def test_levels_over_http_see_the_calls_that_an_engine_alone_writes(server: Deployed) -> None:
    """`armillary eval isles --url` reads calls that the server took apart."""
    seen: list[list[str]] = []

    def generate(questions: list[Question]) -> list[str]:
        talks = [(question.messages, question.tools) for question in questions]
        wishes = Wishes(temperature=0.0, max_tokens=LONGEST_ANSWER)
        seen.append(asyncio.run(answers(RemotePartner(server.url), talks, wishes)))
        return seen[-1]

    (level,) = evaluate(generate, ["tools"], count=24)
    assert sum(parse_call(answer) is not None for answer in seen[0]) >= 12
    assert level.share >= 0.25


def test_what_is_found_out_about_a_model_is_logged_and_can_be_overruled(
    server: Deployed, caplog: pytest.LogCaptureFixture
) -> None:
    assert server.get("/v1/models").status_code == 200
    with caplog.at_level(logging.INFO, "armillary.server"):
        other = Deployed([{"path": "isles", "calls": "none"}], SETTINGS)
        other.wait()
        try:
            with pytest.raises(openai.BadRequestError) as caught:
                chat(other, "What is 34 * 27?")
            assert caught.value.param == "tools"
        finally:
            other.stop()
    assert any("isles: no tools" in record.getMessage() for record in caplog.records)
