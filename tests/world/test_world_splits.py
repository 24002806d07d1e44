"""The two sides of the world share words and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from random import Random
from types import ModuleType

import pytest

from armillary.world import facts, names, tellings
from armillary.world.split import Phrasings, Split, side_of
from armillary.world.task import Task
from armillary.world.tasks import (
    TASKS,
    UNSCORED,
    arithmetic,
    description,
    dialogue,
    extraction,
    ordering,
    reading,
    repeating,
    smalltalk,
    tools,
)

MODULES = (tellings, arithmetic, description, dialogue, extraction, ordering, reading, repeating, smalltalk, tools)
ALL = {**TASKS, **UNSCORED}


def phrasings_of(module: ModuleType) -> Iterator[tuple[str, Phrasings]]:
    for name, value in vars(module).items():
        if isinstance(value, Phrasings):
            yield f"{module.__name__}.{name}", value
    for number, (phrasings, _) in enumerate(getattr(module, "EXCHANGES", ())):
        yield f"{module.__name__}.EXCHANGES[{number}]", phrasings


def every_phrasings() -> list[tuple[str, Phrasings]]:
    return [found for module in MODULES for found in phrasings_of(module)]


def text_of(task: Task) -> str:
    return json.dumps([task.messages, task.answer])


def tasks(name: str, split: Split, count: int) -> Iterator[Task]:
    for number in range(count):
        yield ALL[name](Random(f"test/{name}/{number}"), split, 1 + number % 4)


def test_templates_are_disjoint() -> None:
    assert len(every_phrasings()) > 40
    train = {template for _, phrasings in every_phrasings() for template in phrasings.train}
    for name, phrasings in every_phrasings():
        assert phrasings.train and phrasings.held_out, name
        # Tool questions and reading questions may share a template across kinds; within a kind they never do.
        assert not set(phrasings.train) & set(phrasings.held_out), name
    for module in MODULES:
        own = [phrasings for _, phrasings in phrasings_of(module)]
        trained = {template for phrasings in own for template in phrasings.train}
        assert not trained & {template for phrasings in own for template in phrasings.held_out}, module
    assert train


def test_held_out_templates_use_trained_words_only() -> None:
    def words(templates: tuple[str, ...]) -> set[str]:
        return {word.lower() for template in templates for word in re.findall(r"[A-Za-z]+", template)}

    trained = set().union(*(words(phrasings.train) for _, phrasings in every_phrasings()))
    for name, phrasings in every_phrasings():
        assert words(phrasings.held_out) <= trained, name


@pytest.mark.parametrize("kind", ["people", "towns", "islands"])
def test_names_are_divided(kind: str) -> None:
    train, held_out = (set(getattr(names, kind)(split)) for split in (Split.TRAIN, Split.HELD_OUT))
    assert not train & held_out
    assert len(held_out) >= 8
    assert len(held_out) * 4 < len(train)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("split", list(Split))
def test_names_belong_to_their_side(name: str, split: Split) -> None:
    other = Split.HELD_OUT if split is Split.TRAIN else Split.TRAIN
    strangers = {*names.people(other), *names.towns(other), *names.islands(other)}
    for task in tasks(name, split, 150):
        found = set(re.findall(r"[A-Z][a-z]+", text_of(task)))
        assert not found & strangers, task


@pytest.mark.parametrize("split", list(Split))
def test_operands_belong_to_their_side(split: Split) -> None:
    for task in tasks("addition", split, 200):
        for message in task.messages:
            if message["role"] == "user":
                a, b = map(int, re.findall(r"\d+", message["content"]))
                assert side_of(facts.sum_key((a, b))) is split
    for task in tasks("subtraction", split, 200):
        for message in task.messages:
            if message["role"] == "user":
                a, b = sorted(map(int, re.findall(r"\d+", message["content"])), reverse=True)
                assert side_of(facts.difference_key((a, b))) is split


@pytest.mark.parametrize("name", ["sorting", "reversing"])
@pytest.mark.parametrize("split", list(Split))
def test_item_sets_belong_to_their_side(name: str, split: Split) -> None:
    for task in tasks(name, split, 200):
        assert side_of(facts.items_key(task.answer.split(", "))) is split


@pytest.mark.parametrize("split", list(Split))
def test_pieces_of_scenes_belong_to_their_side(split: Split) -> None:
    for number in range(50):
        for piece in facts.draw_scene(Random(number), split, 4):
            assert side_of(f"piece:{piece.colour} {piece.shape} {piece.cell}") is split


def test_no_task_is_on_both_sides() -> None:
    for name in TASKS:
        train = {text_of(task) for task in tasks(name, Split.TRAIN, 500)}
        held_out = {text_of(task) for task in tasks(name, Split.HELD_OUT, 200)}
        assert not train & held_out
