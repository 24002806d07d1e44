"""Train and held-out sides of the world, disjoint by construction.

Facts are divided by a hash of their identity (a name, a pair of operands, a set of items), templates by being
listed on one side or the other. Nothing that a held-out task states, asks or expects can be drawn for training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from random import Random
from typing import TypeVar

T = TypeVar("T")

HELD_OUT_ONE_IN = 8
"""One fact in eight is held out."""


class Split(StrEnum):
    """Which side of the world a text is drawn from."""

    TRAIN = "train"
    HELD_OUT = "held_out"


@cache
def side_of(key: str) -> Split:
    """The side that owns the fact identified by `key`; the same in every process and on every machine."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return Split.HELD_OUT if int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0 else Split.TRAIN


def draw(split: Split, propose: Callable[[], T], key: Callable[[T], str]) -> T:
    """Proposes until a fact of `split` comes up. `propose` must be able to reach both sides."""
    while True:
        fact = propose()
        if side_of(key(fact)) is split:
            return fact


@dataclass(frozen=True)
class Phrasings:
    """Ways of saying one thing. The two sides share words, never a template."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def of(self, split: Split) -> tuple[str, ...]:
        return self.train if split is Split.TRAIN else self.held_out

    def pick(self, rng: Random, split: Split) -> str:
        return rng.choice(self.of(split))
