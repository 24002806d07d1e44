"""Sorting and reversing lists of up to eight items."""

from __future__ import annotations

from random import Random

from armillary.world import names
from armillary.world.facts import draw_items
from armillary.world.split import Phrasings, Split
from armillary.world.task import Task, turns

SHORTEST, LONGEST = 2, 8
NUMBERS = tuple(str(number) for number in range(1, 100))

SORT_NUMBERS = Phrasings(
    train=(
        "Sort: {items}",
        "Sort these numbers: {items}",
        "Put in order: {items}",
        "Sort from low to high: {items}",
        "What is the order of {items}?",
        "Sort this list of numbers: {items}",
        "Order these numbers: {items}",
        "Put this list in order: {items}",
        "Sort them from low to high: {items}",
        "Sort the numbers {items}",
        "Put {items} in order.",
        "Numbers: {items}. Sort them.",
        "{items}\nSort these numbers.",
        "Give these numbers from low to high: {items}",
        "Write {items} from low to high.",
    ),
    held_out=("Put these numbers in order: {items}", "Sort these from low to high: {items}", "Sort {items}"),
)
SORT_WORDS = Phrasings(
    train=(
        "Sort: {items}",
        "Sort these words: {items}",
        "Put in order: {items}",
        "Sort from A to Z: {items}",
        "What is the order of {items}?",
        "Sort this list of words: {items}",
        "Order these words: {items}",
        "Put this list in order: {items}",
        "Sort them from A to Z: {items}",
        "Sort the words {items}",
        "Put {items} in order.",
        "Words: {items}. Sort them.",
        "{items}\nSort these words.",
        "Give these words from A to Z: {items}",
        "Write {items} from A to Z.",
    ),
    held_out=("Put these words in order: {items}", "Sort these from A to Z: {items}", "Sort {items}"),
)
REVERSE = Phrasings(
    train=(
        "Reverse: {items}",
        "Reverse this list: {items}",
        "Write backwards: {items}",
        "Give this list in reverse: {items}",
        "What is the reverse of {items}?",
        "Reverse the list {items}",
        "Write in reverse: {items}",
        "Put this list in reverse: {items}",
        "Give {items} backwards.",
        "Say this backwards: {items}",
        "List: {items}. Reverse it.",
        "{items}\nReverse this list.",
        "Turn this list round: {items}",
        "What is {items} backwards?",
        "Write {items} in reverse.",
    ),
    held_out=("Write this list in reverse: {items}", "Give this list backwards: {items}", "Reverse {items}"),
)


def make_sorting(rng: Random, split: Split, questions: int) -> Task:
    """`questions` lists to sort: two in three of numbers, the rest of common words."""
    return turns("sorting", [sort_exchange(rng, split) for _ in range(questions)])


def make_reversing(rng: Random, split: Split, questions: int) -> Task:
    """`questions` lists to reverse: numbers, common words or people."""
    return turns("reversing", [reverse_exchange(rng, split) for _ in range(questions)])


def sort_exchange(rng: Random, split: Split) -> tuple[str, str]:
    count = rng.randint(SHORTEST, LONGEST)
    if rng.random() < 2 / 3:
        items = draw_items(rng, split, NUMBERS, count)
        return SORT_NUMBERS.pick(rng, split).format(items=join(items)), join(sorted(items, key=int))
    items = draw_items(rng, split, names.WORDS, count)
    return SORT_WORDS.pick(rng, split).format(items=join(items)), join(sorted(items))


def reverse_exchange(rng: Random, split: Split) -> tuple[str, str]:
    pool = rng.choice([NUMBERS, names.WORDS, names.people(split)])
    items = draw_items(rng, split, pool, rng.randint(SHORTEST, LONGEST))
    return REVERSE.pick(rng, split).format(items=join(items)), join(items[::-1])


def join(items: list[str]) -> str:
    """A list as the Isles write it."""
    return ", ".join(items)
