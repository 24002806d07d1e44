"""Levels on held-out tasks of anything that answers: an engine, a server, or a person."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from armillary.errors import ArmillaryError, Code
from armillary.world.split import Split
from armillary.world.task import Message, Task, Tool
from armillary.world.tasks import TASKS

LONGEST_ANSWER = 128
"""Tokens that any right answer fits in with room to spare: the `max_tokens` to generate with."""


@dataclass(frozen=True)
class Question:
    """What a model is shown: messages and tools as the OpenAI API has them. Decode greedily, up to `LONGEST_ANSWER`
    tokens, and return the text with tool calls as the model wrote them (`<tool_call>…</tool_call>`)."""

    messages: list[Message]
    tools: list[Tool]


@dataclass(frozen=True)
class Level:
    """The result on one kind of task.

    Attributes:
        task: the kind.
        right, count: items answered right, and items asked.
        wrong: some of the wrong ones: the last message, the answer given, the right answer.
    """

    task: str
    right: int
    count: int
    wrong: tuple[tuple[str, str, str], ...]

    @property
    def share(self) -> float:
        return self.right / self.count


def held_out_tasks(
    names: Sequence[str],
    count: int,
    seed: int,
    split: Split = Split.HELD_OUT,
) -> dict[str, list[Task]]:
    """`count` tasks of each kind, one question each. The same arguments give the same tasks everywhere.

    Raises ArmillaryError INVALID_REQUEST for an unknown kind or a count below one.
    """
    for name in names:
        if name not in TASKS:
            raise ArmillaryError(
                Code.INVALID_REQUEST, f"task must be one of {', '.join(TASKS)}, given {name!r}", "tasks"
            )
    if count < 1:
        raise ArmillaryError(Code.INVALID_REQUEST, f"count must be at least 1, given {count}", "count")
    return {
        name: [TASKS[name](Random(f"{seed}/{split}/{name}/{number}"), split, 1) for number in range(count)]
        for name in names
    }


def evaluate(
    generate: Callable[[list[Question]], list[str]],
    tasks: Sequence[str] = tuple(TASKS),
    count: int = 200,
    seed: int = 2,
    split: Split = Split.HELD_OUT,
    examples: int = 3,
) -> list[Level]:
    """Asks `count` held-out tasks of each kind and checks the answers.

    Args:
        generate: answers questions, in order; called once a kind with all of its questions.
        tasks: kinds to ask; all by default.
        count: items of each kind.
        seed: of the items. 1 steered the training mixture of the bundled model, so take another.
        split: TRAIN asks tasks drawn as in training, for comparison.
        examples: wrong answers to keep of each kind.
    """
    table: list[Level] = []
    for name, items in held_out_tasks(tasks, count, seed, split).items():
        answers = generate([Question(item.messages, item.tools) for item in items])
        if len(answers) != len(items):
            raise ArmillaryError(
                Code.INVALID_REQUEST, f"generate must return {len(items)} answers, given {len(answers)}", "generate"
            )
        wrong = [
            (item.messages[-1]["content"], answer, item.answer)
            for item, answer in zip(items, answers, strict=True)
            if not item.check(answer)
        ]
        table.append(Level(name, len(items) - len(wrong), len(items), tuple(wrong[:examples])))
    return table
