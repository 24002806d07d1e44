"""What a model's answer is made of, independent of any API dialect: content, reasoning and tool calls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Content:
    """More of the text that is meant for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of the text in which the model thinks before it answers. Comes before all content and calls."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool call begins. Calls follow one another; none begins before the last one's arguments are complete.

    Attributes:
        index: 0, 1, 2... within one answer.
        id: no other call has it.
        name: always the name of a tool that the request offers.
    """

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments.

    The pieces of one call, joined, are the text of one JSON object, unless the answer ended for its length in
    the middle of a call that a grammar enforces.
    """

    index: int
    text: str


ReplyPart = Content | Reasoning | CallStart | CallArguments


@dataclass(slots=True)
class Call:
    """One complete call; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Message:
    """One complete answer.

    Attributes:
        content: empty where there are only calls.
        reasoning: empty where the model did not think aloud.
    """

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)

    def add(self, parts: Iterable[ReplyPart]) -> None:
        """Join further parts to what there is."""
        for part in parts:
            match part:
                case Content(text):
                    self.content += text
                case Reasoning(text):
                    self.reasoning += text
                case CallStart(_, id, name):
                    self.calls.append(Call(id, name))
                case CallArguments(index, text):
                    self.calls[index].arguments += text
