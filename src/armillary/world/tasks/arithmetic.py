"""Two-digit addition and subtraction, bare and over prices."""

from __future__ import annotations

from random import Random

from armillary.world import names
from armillary.world.facts import draw_difference, draw_sum
from armillary.world.split import Phrasings, Split
from armillary.world.task import Task, turns

ADD = Phrasings(
    train=(
        "{a} + {b}",
        "What is {a} + {b}?",
        "{a} + {b} =",
        "Add {a} and {b}.",
        "What is {a} plus {b}?",
        "How much is {a} and {b}?",
        "What is the sum of {a} and {b}?",
    ),
    held_out=("How much is {a} + {b}?", "How much is {a} plus {b}?", "What is {a} + {b} ="),
)
SUBTRACT = Phrasings(
    train=(
        "{a} - {b}",
        "What is {a} - {b}?",
        "{a} - {b} =",
        "Take {b} from {a}.",
        "What is {a} minus {b}?",
        "How much is {a} less {b}?",
    ),
    held_out=("How much is {a} - {b}?", "How much is {a} minus {b}?", "What is {a} - {b} ="),
)
ADD_PRICES = Phrasings(
    train=(
        "{x} costs {a} coins and {y} costs {b} coins. What do both cost?",
        "I buy {x} for {a} coins and {y} for {b} coins. How much do I pay?",
        "{x}: {a} coins. {y}: {b} coins. What is the sum?",
        "What do {x} for {a} coins and {y} for {b} coins cost together?",
    ),
    held_out=(
        "{x} costs {a} coins and {y} costs {b} coins. How much do I pay for both?",
        "I buy {x} for {a} coins and {y} for {b} coins. What do both cost together?",
    ),
)
SUBTRACT_PRICES = Phrasings(
    train=(
        "I have {a} coins and buy {x} for {b} coins. What is left?",
        "{x} costs {b} coins. I pay with {a} coins. How much do I get back?",
        "I have {a} coins. The price of {x} is {b} coins. How much is left?",
        "{y} costs {a} coins and {x} costs {b} coins. What is the difference?",
    ),
    held_out=(
        "I have {a} coins and pay {b} coins for {x}. How much is left?",
        "{x} costs {b} coins. I have {a} coins. What is left?",
    ),
)


def make_addition(rng: Random, split: Split, questions: int) -> Task:
    """`questions` sums, one an exchange; one in four over prices."""
    return turns("addition", [_exchange(rng, split, add=True) for _ in range(questions)])


def make_subtraction(rng: Random, split: Split, questions: int) -> Task:
    """`questions` differences, one an exchange; one in four over prices."""
    return turns("subtraction", [_exchange(rng, split, add=False) for _ in range(questions)])


def _exchange(rng: Random, split: Split, add: bool) -> tuple[str, str]:
    a, b = draw_sum(rng, split) if add else draw_difference(rng, split)
    result = a + b if add else a - b
    if rng.random() < 0.25:
        x, y = names.some(rng, names.GOODS, 2)
        phrasings = ADD_PRICES if add else SUBTRACT_PRICES
        return phrasings.pick(rng, split).format(a=a, b=b, x=x, y=y), f"{result} coins"
    phrasings = ADD if add else SUBTRACT
    return phrasings.pick(rng, split).format(a=a, b=b), str(result)
