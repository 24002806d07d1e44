"""Saying a list again: the first thing a small model learns about looking back. Trained, never scored."""

from __future__ import annotations

from random import Random

from armillary.world import names
from armillary.world.facts import draw_items
from armillary.world.split import Phrasings, Split
from armillary.world.task import Task, turns
from armillary.world.tasks.ordering import NUMBERS, join

REPEAT = Phrasings(
    train=("Repeat: {items}", "Say again: {items}", "Repeat this list: {items}", "Write this list again: {items}"),
    held_out=("Say this list again: {items}", "Repeat {items}"),
)


def make(rng: Random, split: Split, questions: int) -> Task:
    """`questions` lists to repeat."""
    exchanges = []
    for _ in range(questions):
        pool = rng.choice([NUMBERS, names.WORDS, names.people(split), names.towns(split)])
        items = draw_items(rng, split, pool, rng.randint(1, 8))
        exchanges.append((REPEAT.pick(rng, split).format(items=join(items)), join(items)))
    return turns("repeating", exchanges)
