"""The endless stream of training documents, and batches of them.

Document number n is a function of the seed, the mixture and n alone, so a position in the data is one integer and
resuming is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from armillary.errors import ArmillaryError, Code
from armillary.train.chat import ANSWER, END, STOP, render
from armillary.world.facts import draw_scene, draw_world
from armillary.world.split import Split
from armillary.world.task import Task, assistant
from armillary.world.tasks import TASKS, UNSCORED, Maker
from armillary.world.tellings import tell_scene, tell_world

QUESTIONS: dict[str, int] = {
    "reading": 6,
    "scenes": 4,
    "addition": 8,
    "subtraction": 8,
    "sorting": 4,
    "reversing": 3,
    "extraction": 3,
    "tools": 3,
    "dialogue": 5,
    "description": 3,
    "smalltalk": 3,
    "repeating": 3,
    "telling": 1,
}
"""Most questions in one training document: one passage carries several, so that more of its tokens are answers."""

MIXTURE: dict[str, float] = {
    "reading": 0.20,
    "scenes": 0.05,
    "addition": 0.06,
    "subtraction": 0.06,
    "sorting": 0.15,
    "reversing": 0.10,
    "extraction": 0.11,
    "tools": 0.08,
    "dialogue": 0.10,
    "description": 0.02,
    "smalltalk": 0.01,
    "repeating": 0.05,
    "telling": 0.01,
}
"""Share of documents of each kind at the start; `telling` is a passage without a question."""

MAKERS: dict[str, Maker] = {**TASKS, **UNSCORED}
"""Generators of the tasks trained on, by kind."""


@dataclass(frozen=True)
class Document:
    """Token ids, and for each whether it is a target: a token the loss counts when it is predicted."""

    tokens: list[int]
    targets: list[bool]


@dataclass(frozen=True)
class Batch:
    """Documents packed one after another, never split.

    Attributes:
        tokens, labels: int64 [T]; labels[i] is the token after tokens[i] in its document if a target, else -1.
        lengths: tokens of each document, in order.
    """

    tokens: Tensor
    labels: Tensor
    lengths: list[int]


def encode_task(tokenizer: Tokenizer, task: Task) -> Document:
    """A conversation with its answer; the targets are what the assistant says, its closing mark included."""
    text = render([*task.messages, assistant(task.answer)], task.tools)
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    opening = tokenizer.encode(ANSWER, add_special_tokens=False).ids
    end = tokenizer.token_to_id(END)
    targets = [False] * len(tokens)
    speaking = False
    for index, token in enumerate(tokens):
        targets[index] = speaking
        if token == end:
            speaking = False
        elif tokens[index - len(opening) + 1 : index + 1] == opening:
            speaking = True
    return Document(tokens[:-1], targets[:-1])  # less the line break after the last closing mark


def encode_telling(tokenizer: Tokenizer, passage: str) -> Document:
    """A passage as plain text; every token but the first is a target, the end of text included."""
    tokens = tokenizer.encode(passage + STOP, add_special_tokens=False).ids
    return Document(tokens, [False] + [True] * (len(tokens) - 1))


def telling(rng: Random, split: Split) -> str:
    """A passage about a corner of the Isles or a scene."""
    if rng.random() < 0.2:
        return tell_scene(rng, split, draw_scene(rng, split, rng.randint(2, 6)))
    return tell_world(rng, split, draw_world(rng, split, rng.randint(1, 3), rng.randint(1, 3), rng.randint(0, 2), 1))


def document(tokenizer: Tokenizer, seed: int, number: int, mixture: dict[str, float]) -> Document:
    """Training document `number`."""
    rng = Random(f"{seed}/document/{number}")
    kind = rng.choices(list(mixture), list(mixture.values()))[0]
    if kind == "telling":
        return encode_telling(tokenizer, telling(rng, Split.TRAIN))
    make = MAKERS[kind]
    return encode_task(tokenizer, make(rng, Split.TRAIN, rng.randint(1, QUESTIONS[kind])))


def pack(documents: list[Document]) -> Batch:
    """Packs whole documents into a batch."""
    tokens: list[int] = []
    labels: list[int] = []
    for item in documents:
        tokens += item.tokens
        following = zip(item.tokens[1:], item.targets[1:], strict=True)
        labels += [token if target else -1 for token, target in following] + [-1]
    return Batch(torch.tensor(tokens), torch.tensor(labels), [len(item.tokens) for item in documents])


def step_from(
    tokenizer: Tokenizer, seed: int, number: int, mixture: dict[str, float], size: int, shards: int
) -> tuple[list[Batch], int]:
    """The documents of one step, from document `number` on: as many whole ones as fit in `size` tokens, dealt into at
    most `shards` batches of nearly equal length; and the number of the first document of the next step."""
    chosen: list[Document] = []
    total = 0
    for item in _from(tokenizer, seed, number, mixture):
        if total + len(item.tokens) > size:
            break
        chosen.append(item)
        total += len(item.tokens)
    if not chosen:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"tokens_per_step must hold one document, given {size}, so take at least 1024",
            "tokens_per_step",
        )
    hands: list[list[Document]] = [[] for _ in range(shards)]
    for item in sorted(chosen, key=lambda d: -len(d.tokens)):
        min(hands, key=lambda hand: sum(len(d.tokens) for d in hand)).append(item)
    return [pack(hand) for hand in hands if hand], number + len(chosen)


def _from(tokenizer: Tokenizer, seed: int, number: int, mixture: dict[str, float]) -> Iterator[Document]:
    while True:
        yield document(tokenizer, seed, number, mixture)
        number += 1
