"""What things are called on the Isles.

Proper names are made of two syllables, so that a held-out name is new as a whole and familiar in its parts.
"""

from __future__ import annotations

from functools import cache
from random import Random

from armillary.world.split import Split, side_of

PEOPLE = (
    (
        "Tal Mir Rom Sel Bran Kav Lor Nel Orm Per Ulv Vin Han Jor Dar Fen Gar Ran Lin Mor "
        "Ald Bet Cor Des Edr Fal Gis Hul Ing Jes Kor Lud Mad Nor Osk Pol Ros Sig Tov Wil"
    ).split(),
    "mar mo ba bel bin via vor wen wa win fa fin jan ja ju fer mel bor vik wol".split(),
)
TOWNS = (
    (
        "Kel Bar Stan Glen Oak Red North Sud East Long Gold Ash Elm Rock Cold Deep "
        "Birch Clay Dun Fern Green Hazel Iron Kirk Lake Moss"
    ).split(),
    "mor port ham ford wick haven by stead mouth field bridge gate".split(),
)
ISLANDS = (
    "Skar Hel Ond Vest Far Hol Tir Ern Brug Wen Gul Syl Arn Drom Fjal Hav".split(),
    "voy ray sund holm ness beck wold fell".split(),
)

GOODS = tuple(
    "ale amber barley brass bread butter cheese cider clay cloth coal copper corn fish flour fruit glass honey ink "
    "iron leather milk oil paper pepper rice rope salt silk soap sugar tar tea timber wax wine wool".split()
)
TRADES = tuple(
    "baker brewer carpenter cooper fisher gardener glazier hunter mason miller miner potter sailor shepherd smith "
    "tailor tanner teacher weaver healer".split()
)
COLOURS = tuple("red blue green yellow white black purple brown".split())
SHAPES = tuple("circle square triangle star cross ring".split())
KEYS = tuple("name trade town age good price field start end expression".split())
"""Keys of records and arguments of tools."""
CELLS = tuple(column + row for column in "ABCD" for row in "1234")

WORDS = GOODS + TRADES
"""Common words, known to both sides; what is held out is which of them come together."""


@cache
def _names(kind: str, split: Split) -> tuple[str, ...]:
    first, second = {"person": PEOPLE, "town": TOWNS, "island": ISLANDS}[kind]
    return tuple(name for name in (a + b for a in first for b in second) if side_of(f"{kind}:{name}") is split)


def people(split: Split) -> tuple[str, ...]:
    """All names of people on one side."""
    return _names("person", split)


def towns(split: Split) -> tuple[str, ...]:
    """All names of towns on one side."""
    return _names("town", split)


def islands(split: Split) -> tuple[str, ...]:
    """All names of islands on one side."""
    return _names("island", split)


def some(rng: Random, names: tuple[str, ...], count: int) -> list[str]:
    """`count` different names, in random order."""
    return rng.sample(names, count)
