"""A reply that a server took apart, as the one text that a model in this process would have written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from armillary.models.calls.hermes import WRITTEN
from armillary.models.reasoning import THINK


class Spelling:
    """Turns the deltas of one streamed choice into text: reasoning between `<think>` tags, calls between
    `<tool_call>` tags. The tags are the same whatever the model behind the server writes."""

    def __init__(self) -> None:
        self._thinking = False
        self._said = False
        self._call: int | None = None
        """Index of the call whose arguments are arriving."""

    def take(self, delta: Mapping[str, Any]) -> str:
        """The text of what is new."""
        text = ""
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            text += "" if self._thinking else THINK.opening + "\n"
            self._thinking = True
            text += thought
        if content := delta.get("content"):
            text += self.end() + content
            self._said = True
        for call in delta.get("tool_calls") or ():
            text += self._part_of_call(call)
        return text

    def end(self) -> str:
        """What closes the part that is open, if one is."""
        text = ""
        if self._thinking:
            self._thinking, text = False, f"\n{THINK.closing}\n\n"
        if self._call is not None:
            self._call, text = None, text + WRITTEN.after
        return text

    def _part_of_call(self, call: Mapping[str, Any]) -> str:
        function = call.get("function") or {}
        index = call.get("index") or 0
        arguments = str(function.get("arguments") or "")
        if index == self._call:
            return arguments
        text = self.end() + (WRITTEN.between if self._said else "")
        self._call, self._said = index, True
        return text + WRITTEN.before_name + str(function.get("name")) + WRITTEN.before_arguments + arguments
