"""Tool calls: which tool, with which arguments, and what to say when the result is back."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from armillary.world import names
from armillary.world.facts import draw_difference, draw_sum
from armillary.world.split import Phrasings, Split, draw
from armillary.world.task import Message, Task, Tool, assistant, user


def _tool(tool: str, about: str, /, **parameters: str) -> Tool:
    return {
        "type": "function",
        "function": {
            "name": tool,
            "description": about,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "string", "description": what} for key, what in parameters.items()},
                "required": list(parameters),
            },
        },
    }


CALCULATE = _tool("calculate", "Works out an expression.", expression="such as 34 * 27")
LOOK_UP = _tool("look_up", "Looks up a person.", name="who", field="trade, town or age")
PRICE = _tool("price", "The price of a good in a town.", good="what", town="where")
DISTANCE = _tool("distance", "The miles between two towns.", start="from", end="to")
TOOLS = (CALCULATE, LOOK_UP, PRICE, DISTANCE)

ASK_CALCULATE = Phrasings(
    train=(
        "What is {expression}?",
        "Calculate {expression}.",
        "{expression}",
        "{expression} =",
        "How much is {expression}?",
        "Work out {expression}.",
        "Calculate: {expression}",
        "What does {expression} come to?",
        "How much is {expression} =",
        "What is the result of {expression}?",
        "Tell me {expression}.",
        "Give {expression}.",
        "Work out: {expression}",
    ),
    held_out=("Calculate {expression} =", "What is {expression} ="),
)
ASK_FIELD = Phrasings(
    train=(
        "What is the {field} of {name}?",
        "Look up the {field} of {name}.",
        "{field} of {name}?",
        "Which {field} does {name} have?",
        "Give the {field} of {name}.",
        "Tell me the {field} of {name}.",
        "Look up {name} and give the {field}.",
        "What is the {field} that {name} has?",
        "{name}: {field}?",
        "I want the {field} of {name}.",
        "Look up which {field} {name} has.",
        "What {field} is {name}?",
        "Find the {field} of {name}.",
        "{field} of {name}",
        "Look up {field} of {name}.",
    ),
    held_out=("What {field} does {name} have?", "Look up {name}: {field}?"),
)
ASK_PRICE = Phrasings(
    train=(
        "What does {good} cost in {town}?",
        "How much is {good} in {town}?",
        "Look up the price of {good} in {town}.",
        "What does one pay for {good} in {town}?",
        "Price of {good} in {town}?",
        "What is the price for {good} in {town}?",
        "How many coins is {good} in {town}?",
        "Tell me the price of {good} in {town}.",
        "What is {good} in {town}?",
        "Look up what {good} costs in {town}.",
        "In {town}, how much is {good}?",
        "In {town}, what does {good} cost?",
        "How much does one pay in {town} for {good}?",
    ),
    held_out=("What is the price of {good} in {town}?", "How much does {good} cost in {town}?"),
)
ASK_DISTANCE = Phrasings(
    train=(
        "How far is it from {start} to {end}?",
        "Look up the distance from {start} to {end}.",
        "How many miles from {start} to {end}?",
        "Distance from {start} to {end}?",
        "How far is {end} from {start}?",
        "Tell me the distance from {start} to {end}.",
        "Tell me how far it is from {start} to {end}.",
        "What are the miles from {start} to {end}?",
        "How many miles is {end} from {start}?",
        "Miles from {start} to {end}?",
        "Look up how far {start} is from {end}.",
        "Look up the miles from {start} to {end}.",
    ),
    held_out=("What is the distance from {start} to {end}?", "How many miles is it from {start} to {end}?"),
)


def render_call(name: str, arguments: dict[str, Any]) -> str:
    """A call as the chat template writes it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def parse_call(text: str) -> dict[str, Any] | None:
    """The one call in `text`, or None where it is not exactly one well-formed call."""
    body = text.strip()
    if not (body.startswith("<tool_call>") and body.endswith("</tool_call>")):
        return None
    try:
        call = json.loads(body.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    except ValueError:
        return None
    return call if isinstance(call, dict) and set(call) == {"name", "arguments"} else None


def make(rng: Random, split: Split, questions: int) -> Task:
    """`questions` questions that need a tool. In training the result comes back and is answered as well; the task
    itself always ends at a call."""
    wanted = [rng.choice(TOOLS) for _ in range(questions)]
    offered = [tool for tool in TOOLS if tool in wanted or rng.random() < 0.5]
    rng.shuffle(offered)
    messages: list[Message] = []
    for number, tool in enumerate(wanted):
        question, arguments, result = _MAKERS[tool["function"]["name"]](rng, split)
        name = tool["function"]["name"]
        messages.append(user(question))
        if number + 1 < questions:
            call = {"type": "function", "function": {"name": name, "arguments": arguments}}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "content": result})
            messages.append(assistant(result))
    truth = {"name": name, "arguments": arguments}
    return Task("tools", messages, render_call(name, arguments), lambda given: parse_call(given) == truth, offered)


def _calculate(rng: Random, split: Split) -> tuple[str, dict[str, str], str]:
    operator = rng.choice("+-*")
    if operator == "+":
        a, b = draw_sum(rng, split, 2, 999)
    elif operator == "-":
        a, b = draw_difference(rng, split, 2, 999)
    else:
        a, b = draw(split, lambda: (rng.randint(2, 999), rng.randint(2, 99)), lambda p: f"product:{p[0]} {p[1]}")
    expression = f"{a} {operator} {b}"
    result = {"+": a + b, "-": a - b, "*": a * b}[operator]
    return ASK_CALCULATE.pick(rng, split).format(expression=expression), {"expression": expression}, str(result)


def _look_up(rng: Random, split: Split) -> tuple[str, dict[str, str], str]:
    name = rng.choice(names.people(split))
    field = rng.choice(["trade", "town", "age"])
    trade, town = rng.choice(names.TRADES), rng.choice(names.towns(split))
    result = {"trade": trade, "town": town, "age": str(rng.randint(18, 80))}
    return ASK_FIELD.pick(rng, split).format(field=field, name=name), {"name": name, "field": field}, result[field]


def _price(rng: Random, split: Split) -> tuple[str, dict[str, str], str]:
    good, town = rng.choice(names.GOODS), rng.choice(names.towns(split))
    question = ASK_PRICE.pick(rng, split).format(good=good, town=town)
    return question, {"good": good, "town": town}, f"{rng.randint(2, 99)} coins"


def _distance(rng: Random, split: Split) -> tuple[str, dict[str, str], str]:
    start, end = names.some(rng, names.towns(split), 2)
    question = ASK_DISTANCE.pick(rng, split).format(start=start, end=end)
    return question, {"start": start, "end": end}, f"{rng.randint(2, 99)} miles"


_MAKERS: dict[str, Callable[[Random, Split], tuple[str, dict[str, str], str]]] = {
    "calculate": _calculate,
    "look_up": _look_up,
    "price": _price,
    "distance": _distance,
}
