"""The part of an answer in which a model thinks aloud, told apart by the marks around it."""

from __future__ import annotations

from dataclasses import dataclass

_SPACE = " \t\n\r"


@dataclass(frozen=True, slots=True)
class Marks:
    """What a family writes before and after its reasoning."""

    name: str
    opening: str
    closing: str


THINK = Marks("think", "<think>", "</think>")
"""Qwen3, DeepSeek-R1 and its distillations, SmolLM3, QwQ, and many others."""
MAGISTRAL = Marks("magistral", "[THINK]", "[/THINK]")
ALL_MARKS = (THINK, MAGISTRAL)


class ReasoningReader:
    """Splits an answer into reasoning and the rest, the same way however it is cut into pieces.

    Reasoning stands at the beginning or nowhere. The marks, and the white space beside them, belong to neither
    part. An answer that ends before the closing mark is reasoning to its end.

    Args:
        opened: the prompt ends with the opening mark, so the answer begins within the reasoning.

    Attributes:
        found: there is reasoning, or has been.
        over: no reasoning follows.
    """

    def __init__(self, marks: Marks, opened: bool) -> None:
        self._marks = marks
        self._held = ""
        self._begun = False
        """Whether any of the reasoning itself has come out."""
        self._stripping = False
        """Whether the white space after the closing mark is still being passed over."""
        self._looking = True
        """Whether the opening mark may still come. Models repeat it where the prompt has it already."""
        self.found = opened
        self.over = False

    def push(self, text: str) -> tuple[str, str]:
        """What is certain now: more reasoning, and more of what follows it."""
        if self.over:
            return "", self._rest(text)
        text, self._held = self._held + text, ""
        if self._looking:
            body = text.lstrip(_SPACE)
            if self._marks.opening.startswith(body):
                if body == self._marks.opening:
                    self.found, self._looking = True, False
                else:
                    self._held = text
                return "", ""
            self._looking = False
            if body.startswith(self._marks.opening):
                self.found, text = True, body[len(self._marks.opening) :]
            elif not self.found:
                self.over = True
                return "", text
        return self._reasoning(text)

    def finish(self) -> tuple[str, str]:
        """The rest, at the end of the answer."""
        held, self._held = self._held, ""
        return (held, "") if self.found and not self.over else ("", held)

    def _reasoning(self, text: str) -> tuple[str, str]:
        if not self._begun:
            text = text.lstrip(_SPACE)
        closing = self._marks.closing
        place = text.find(closing)
        if place >= 0:
            self.over = self._stripping = True
            thought = text[:place].rstrip(_SPACE)
            return thought, self._rest(text[place + len(closing) :])
        certain = len(text) - _may_begin(text, closing)
        certain = len(text[:certain].rstrip(_SPACE))
        thought, self._held = text[:certain], text[certain:]
        self._begun = self._begun or bool(thought)
        return thought, ""

    def _rest(self, text: str) -> str:
        if self._stripping:
            text = text.lstrip(_SPACE)
            self._stripping = not text
        return text


def _may_begin(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if mark.startswith(text[len(text) - length :]):
            return length
    return 0
