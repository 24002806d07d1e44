"""The facts of the Isles: who lives where, what costs what, how far it is. No text is made here."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from armillary.world import names
from armillary.world.split import Split, draw


@dataclass(frozen=True)
class Person:
    """An inhabitant; `age` in years."""

    name: str
    trade: str
    town: str
    age: int


@dataclass(frozen=True)
class Offer:
    """A good on sale in a town; `price` in coins."""

    good: str
    price: int
    town: str


@dataclass(frozen=True)
class Place:
    """A town on its island."""

    town: str
    island: str


@dataclass(frozen=True)
class Route:
    """The way between two towns; `miles` is the same in both directions."""

    start: str
    end: str
    miles: int


@dataclass(frozen=True)
class World:
    """A corner of the Isles, small enough to be told in a passage. Within one world every trade has one person,
    every good one town, and no name occurs twice."""

    people: tuple[Person, ...]
    offers: tuple[Offer, ...]
    places: tuple[Place, ...]
    routes: tuple[Route, ...]


@dataclass(frozen=True)
class Piece:
    """A coloured shape in a cell of the grid."""

    colour: str
    shape: str
    cell: str


Scene = tuple[Piece, ...]


def draw_world(rng: Random, split: Split, people: int = 3, offers: int = 3, places: int = 2, routes: int = 1) -> World:
    """Draws a world whose every proper name belongs to `split`, hence every fact of it."""
    towns = names.some(rng, names.towns(split), max(4, people, places, 2 * routes))
    islands = names.some(rng, names.islands(split), max(1, places))
    trades = names.some(rng, names.TRADES, people)
    goods = names.some(rng, names.GOODS, offers)
    return World(
        people=tuple(
            Person(name, trade, rng.choice(towns), rng.randint(18, 80))
            for name, trade in zip(names.some(rng, names.people(split), people), trades, strict=True)
        ),
        offers=tuple(Offer(good, rng.randint(2, 99), rng.choice(towns)) for good in goods),
        places=tuple(Place(town, island) for town, island in zip(towns, islands, strict=False))[:places],
        routes=tuple(
            Route(start, end, rng.randint(2, 99)) for start, end in (rng.sample(towns, 2) for _ in range(routes))
        ),
    )


def draw_scene(rng: Random, split: Split, pieces: int) -> Scene:
    """Draws a scene whose every (colour, shape, cell) belongs to `split`; cells and looks are all different."""
    scene: list[Piece] = []
    while len(scene) < pieces:
        piece = draw(
            split,
            lambda: Piece(rng.choice(names.COLOURS), rng.choice(names.SHAPES), rng.choice(names.CELLS)),
            lambda p: f"piece:{p.colour} {p.shape} {p.cell}",
        )
        if all(piece.cell != other.cell and look(piece) != look(other) for other in scene):
            scene.append(piece)
    return tuple(scene)


def look(piece: Piece) -> str:
    """Colour and shape, as one says it."""
    return f"{piece.colour} {piece.shape}"


def draw_sum(rng: Random, split: Split, low: int = 10, high: int = 99) -> tuple[int, int]:
    """Two numbers to add. The unordered pair belongs to `split`, so that no sum leaks by commuting."""
    return draw(split, lambda: (rng.randint(low, high), rng.randint(low, high)), sum_key)


def draw_difference(rng: Random, split: Split, low: int = 10, high: int = 99) -> tuple[int, int]:
    """Two numbers to subtract, the larger first."""

    def propose() -> tuple[int, int]:
        a, b = rng.randint(low, high), rng.randint(low, high)
        return max(a, b), min(a, b)

    return draw(split, propose, difference_key)


def sum_key(pair: tuple[int, int]) -> str:
    return f"sum:{min(pair)} {max(pair)}"


def difference_key(pair: tuple[int, int]) -> str:
    return f"difference:{pair[0]} {pair[1]}"


def draw_items(rng: Random, split: Split, pool: tuple[str, ...], count: int) -> list[str]:
    """`count` different items of `pool` in random order. The set belongs to `split`, whatever its order."""
    return draw(split, lambda: rng.sample(pool, count), items_key)


def items_key(items: list[str]) -> str:
    return "items:" + " ".join(sorted(items))
