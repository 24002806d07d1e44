"""From the text of an answer to its parts, one piece of text at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from armillary.models.calls.format import CallFormat
from armillary.models.calls.reader import CallReader
from armillary.models.reasoning import Marks, ReasoningReader
from armillary.models.reply import CallArguments, Content, Reasoning, ReplyPart


@dataclass(frozen=True, slots=True)
class Reading:
    """How the answers to one request are read.

    Attributes:
        marks: around the model's reasoning; None: whatever comes is content.
        opened: the prompt ends within the reasoning.
        calls: how the model writes calls; None where the request offers no tools.
        tools: name of each tool that it offers -> schema of its arguments.
        certain: a grammar enforces that calls are well-formed, so they go out while they are being written.
        enforced: the same, but for calls that a stop cuts in two; implied by `certain`.
        one: the answer ends with its first call.
        either: a grammar makes it calls or content, never both: what looks like a call within content is content.
        shown: control tokens that are read as text, because they mark calls or reasoning.
    """

    marks: Marks | None = None
    opened: bool = False
    calls: CallFormat | None = None
    tools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    certain: bool = False
    enforced: bool = False
    one: bool = False
    either: bool = False
    shown: frozenset[int] = frozenset()


class ReplyReader:
    """Reads one choice. Its parts, joined, do not depend on how the text was cut into pieces.

    Attributes:
        done: the answer is complete whatever the model goes on to write.
    """

    def __init__(self, reading: Reading) -> None:
        self._reasoning = None if reading.marks is None else ReasoningReader(reading.marks, reading.opened)
        self._calls = (
            None
            if reading.calls is None
            else CallReader(
                reading.calls,
                reading.tools,
                certain=reading.certain,
                one=reading.one,
                either=reading.either,
                enforced=reading.enforced,
            )
        )
        self.done = False

    @property
    def has_reasoned(self) -> bool:
        """Whether the answer has, or had, reasoning."""
        return self._reasoning is not None and self._reasoning.found

    @property
    def may_reason(self) -> bool:
        """Whether the next character may belong to the reasoning or its marks."""
        return self._reasoning is not None and not self._reasoning.over

    @property
    def calls(self) -> int:
        """How many calls have begun."""
        return 0 if self._calls is None else self._calls.calls

    def push(self, text: str) -> list[ReplyPart]:
        """The parts that are certain now."""
        thought = ""
        if self._reasoning is not None:
            thought, text = self._reasoning.push(text)
        return self._parts(thought, text)

    def finish(self) -> list[ReplyPart]:
        """The rest, at the end of the answer."""
        parts: list[ReplyPart] = []
        if self._reasoning is not None:
            parts = self._parts(*self._reasoning.finish())
        return parts + (self._calls.finish() if self._calls is not None else [])

    def _parts(self, thought: str, text: str) -> list[ReplyPart]:
        parts: list[ReplyPart] = [Reasoning(thought)] if thought else []
        if self._calls is not None:
            parts += self._calls.push(text)
            self.done = self._calls.done
        elif text:
            parts.append(Content(text))
        return parts


def merged(parts: Sequence[ReplyPart]) -> list[ReplyPart]:
    """The same parts with pieces of one text that follow one another joined."""
    result: list[ReplyPart] = []
    for part in parts:
        last = result[-1] if result else None
        match last, part:
            case (Content(before), Content(text)):
                result[-1] = Content(before + text)
            case (Reasoning(before), Reasoning(text)):
                result[-1] = Reasoning(before + text)
            case (CallArguments(index, before), CallArguments(_, text)):
                result[-1] = CallArguments(index, before + text)
            case _:
                result.append(part)
    return result
