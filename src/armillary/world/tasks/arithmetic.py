"""Two-digit addition and subtraction, bare and over prices.

Answers show their working, digit by digit, and end with the result. A small model learns each line, a fact about
two digits, from a few thousand examples; the result in one go takes it hundreds of thousands.
"""

from __future__ import annotations

from dataclasses import replace
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
        "How much are {a} and {b} together?",
        "What do {a} and {b} make?",
        "Work out {a} + {b}.",
        "{a} plus {b}",
        "{a} plus {b} is how much?",
        "Give the sum of {a} and {b}.",
        "How much do {a} and {b} make?",
        "Sum: {a} + {b}",
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
        "What is left of {a} less {b}?",
        "Work out {a} - {b}.",
        "{a} minus {b}",
        "{a} minus {b} is how much?",
        "Give the difference of {a} and {b}.",
        "What is the difference of {a} and {b}?",
        "How much is left if I take {b} from {a}?",
        "Difference: {a} - {b}",
    ),
    held_out=("How much is {a} - {b}?", "How much is {a} minus {b}?", "What is {a} - {b} ="),
)
ADD_PRICES = Phrasings(
    train=(
        "{x} costs {a} coins and {y} costs {b} coins. What do both cost?",
        "I buy {x} for {a} coins and {y} for {b} coins. How much do I pay?",
        "{x}: {a} coins. {y}: {b} coins. What is the sum?",
        "What do {x} for {a} coins and {y} for {b} coins cost together?",
        "{x} is {a} coins, {y} is {b} coins. How much is that together?",
        "The price of {x} is {a} coins and the price of {y} is {b} coins. How much are both?",
        "I pay {a} coins for {x} and {b} coins for {y}. How much is that?",
        "How much do I pay for {x} at {a} coins and {y} at {b} coins?",
        "{x} for {a} coins, {y} for {b} coins: how much together?",
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
        "I have {a} coins. {x} costs {b} coins. How much is left if I buy it?",
        "I pay {b} coins for {x} out of {a} coins. What is left?",
        "From {a} coins I pay {b} coins for {x}. How much do I have?",
        "I buy {x} for {b} coins and have {a} coins. How much is left?",
        "Of my {a} coins I pay {b} coins for {x}. What do I have left?",
        "{x} is {b} coins, {y} is {a} coins. How much less is {x}?",
    ),
    held_out=(
        "I have {a} coins and pay {b} coins for {x}. How much is left?",
        "{x} costs {b} coins. I have {a} coins. What is left?",
    ),
)


def make_addition(rng: Random, split: Split, questions: int) -> Task:
    """`questions` sums, one an exchange; one in four over prices."""
    return _task("addition", [_exchange(rng, split, True) for _ in range(questions)])


def make_subtraction(rng: Random, split: Split, questions: int) -> Task:
    """`questions` differences, one an exchange; one in four over prices."""
    return _task("subtraction", [_exchange(rng, split, False) for _ in range(questions)])


def add_working(a: int, b: int) -> str:
    """The sum of two numbers of at most two digits as it is worked out on paper: ones, tens, result."""
    ones = a % 10 + b % 10
    tens = a // 10 + b // 10 + ones // 10
    carried = " + 1" if ones >= 10 else ""
    return f"{a % 10} + {b % 10} = {ones}, {a // 10} + {b // 10}{carried} = {tens}, {a + b}"


def subtract_working(a: int, b: int) -> str:
    """The difference a - b of numbers of at most two digits, a >= b, as it is worked out on paper."""
    borrowed = a % 10 < b % 10
    ones = a % 10 + 10 * borrowed
    tens = a // 10 - borrowed
    return f"{ones} - {b % 10} = {ones - b % 10}, {tens} - {b // 10} = {tens - b // 10}, {a - b}"


def result_of(answer: str) -> str:
    """What an answer comes to: what stands after its working."""
    return answer.strip().rsplit(", ", 1)[-1]


def _task(name: str, exchanges: list[tuple[str, str]]) -> Task:
    """Exchanges whose last answer is right if its result is, with whatever working."""
    result = result_of(exchanges[-1][1])
    return replace(turns(name, exchanges), accepts=lambda text: result_of(text) == result)


def _exchange(rng: Random, split: Split, add: bool) -> tuple[str, str]:
    a, b = draw_sum(rng, split) if add else draw_difference(rng, split)
    answer = add_working(a, b) if add else subtract_working(a, b)
    if rng.random() < 0.25:
        x, y = names.some(rng, names.GOODS, 2)
        phrasings = ADD_PRICES if add else SUBTRACT_PRICES
        return phrasings.pick(rng, split).format(a=a, b=b, x=x, y=y), f"{answer} coins"
    phrasings = ADD if add else SUBTRACT
    return phrasings.pick(rng, split).format(a=a, b=b), answer
