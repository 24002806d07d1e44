"""The bundled model in the dialects with typed events: loops of tools, streams, schemas, with the clients unchanged.

What it answers may differ from one training to the next, so nothing here hangs on an answer being right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import pytest
from pydantic import BaseModel

from armillary.world.evaluate import LONGEST_ANSWER
from armillary.world.tasks.tools import CALCULATE, DISTANCE
from server.deployed import Deployed

QUESTIONS = ["What is 34 * 27?", "Calculate 512 + 77."]
FUNCTIONS = [CALCULATE["function"], DISTANCE["function"]]
FLAT = [{"type": "function", "strict": False, **function} for function in FUNCTIONS]
TOOLS = [
    {"name": f["name"], "description": f.get("description", ""), "input_schema": f["parameters"]} for f in FUNCTIONS
]
SETTINGS = {"max_context": 1024, "kv_blocks": 512, "max_running": 16, "threads": 1}


class Verdict(BaseModel):
    verdict: Literal["yes", "no"]


@pytest.fixture(scope="module")
def server() -> Iterator[Deployed]:
    running = Deployed(["isles"], SETTINGS)
    running.wait()
    yield running
    running.stop()


def claude(server: Deployed) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=120)


def test_35_a_loop_of_tools_in_responses(server: Deployed) -> None:
    client = server.client()
    asked: dict[str, Any] = {"model": "isles", "tools": FLAT, "temperature": 0, "max_output_tokens": LONGEST_ANSWER}
    finished = 0
    for question in QUESTIONS:
        items: list[Any] = [{"role": "user", "content": question}]
        first = client.responses.create(**asked, input=items)
        with client.responses.stream(**asked, input=items) as stream:
            for _ in stream:
                pass
            streamed = stream.get_final_response()
        assert [item.type for item in streamed.output] == [item.type for item in first.output]
        calls = [item for item in first.output if item.type == "function_call"]
        if not calls:
            continue
        assert all(isinstance(json.loads(call.arguments), dict) for call in calls)
        results = [{"type": "function_call_output", "call_id": call.call_id, "output": "918"} for call in calls]
        by_items = client.responses.create(**asked, input=[*items, *first.output, *results])
        by_id = client.responses.create(**asked, input=results, previous_response_id=first.id)
        assert by_items.output_text == by_id.output_text
        finished += "918" in by_items.output_text
    assert finished >= 1


def test_35_a_loop_of_tools_in_messages(server: Deployed) -> None:
    client = claude(server)
    asked: dict[str, Any] = {"model": "isles", "tools": TOOLS, "max_tokens": LONGEST_ANSWER}
    asked["extra_body"] = {"temperature": 0}
    finished = 0
    for question in QUESTIONS:
        messages: list[Any] = [{"role": "user", "content": question}]
        first = client.messages.create(**asked, messages=messages)
        with client.messages.stream(**asked, messages=messages) as stream:
            streamed = stream.get_final_message()
        assert [block.type for block in streamed.content] == [block.type for block in first.content]
        if first.stop_reason != "tool_use":
            continue
        calls = [block for block in first.content if block.type == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": "918"} for call in calls]
        messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
        last = client.messages.create(**asked, messages=messages)
        finished += any("918" in block.text for block in last.content if block.type == "text")
    assert finished >= 1


def test_35_an_object_of_a_schema(server: Deployed) -> None:
    question = "Is Ellin an island?"
    parsed = server.client().responses.parse(
        model="isles", input=question, text_format=Verdict, max_output_tokens=100, temperature=0
    )
    assert isinstance(parsed.output_parsed, Verdict)
    message = claude(server).messages.parse(
        model="isles", max_tokens=100, messages=[{"role": "user", "content": question}], output_format=Verdict
    )
    assert isinstance(message.parsed_output, Verdict)


def test_the_client_of_anthropic_lists_the_models(server: Deployed) -> None:
    assert [model.id for model in claude(server).models.list()] == ["isles"]
