"""A task: a conversation up to a question, the answer, and the check that knows the right one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
"""One message as the OpenAI API writes it: role, content, and tool_calls where the assistant calls."""

Tool = dict[str, Any]
"""One tool as the OpenAI API writes it."""


@dataclass(frozen=True)
class Task:
    """What is asked, and what is right.

    Args:
        name: the kind of task, e.g. `reading`.
        messages: the conversation, ending where the assistant must answer. Earlier assistant messages are right
            answers too, and are trained on.
        answer: the text of the right answer, as trained (for a call, the rendered `<tool_call>`).
        accepts: whether another text is right as well as `answer`; by default only the same text, outer blanks aside.
        tools: the tools on offer.
    """

    name: str
    messages: list[Message]
    answer: str
    accepts: Callable[[str], bool] | None = None
    tools: list[Tool] = field(default_factory=list)

    def check(self, text: str) -> bool:
        """Whether `text` is a right answer."""
        if self.accepts is not None:
            return self.accepts(text)
        return text.strip() == self.answer


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def turns(name: str, exchanges: list[tuple[str, str]]) -> Task:
    """A task whose question is the last of several exchanges (question, answer)."""
    messages: list[Message] = []
    for question, answer in exchanges[:-1]:
        messages += [user(question), assistant(answer)]
    question, answer = exchanges[-1]
    return Task(name, [*messages, user(question)], answer)


def same_json(text: str, truth: Any) -> bool:
    """Whether `text` is one JSON value equal to `truth`, types included."""
    try:
        given = json.loads(text)
    except ValueError:
        return False
    return json.dumps(given, sort_keys=True) == json.dumps(truth, sort_keys=True)
