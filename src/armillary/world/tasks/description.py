"""Descriptions: notes about a person, a good or a scene, written out as sentences that say all of it and no more."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from armillary.world import tellings
from armillary.world.facts import draw_scene, draw_world, look
from armillary.world.split import Phrasings, Split
from armillary.world.task import Task, assistant, user

DESCRIBE = Phrasings(
    train=(
        "Describe {subject}: {notes}",
        "Write about {subject}: {notes}",
        "Notes: {notes}\nDescribe {subject}.",
        "Tell me about {subject}: {notes}",
        "{notes}\nWrite that in words.",
    ),
    held_out=("Write in words about {subject}: {notes}", "Notes: {notes}\nTell me about {subject}."),
)

Fact = tuple[Phrasings, dict[str, object]]
"""Phrasings that tell a fact, and what fills them."""


def make(rng: Random, split: Split, questions: int) -> Task:
    """`questions` subjects to describe, one an exchange. Any telling of the facts in their order is right."""
    messages = []
    for _ in range(questions):
        subject, notes, facts = rng.choice([_person, _scene, _market])(rng, split)
        answer = " ".join(phrasings.pick(rng, Split.TRAIN).format(**fill) for phrasings, fill in facts)
        question = DESCRIBE.pick(rng, split).format(subject=subject, notes=notes)
        messages += [user(question), assistant(answer)]
    answer = messages.pop()["content"]
    return Task("description", messages, answer, accepts=tells(facts))


def tells(facts: list[Fact]) -> Callable[[str], bool]:
    """A check that a text is one telling of each fact, in order, and nothing else."""
    options = [
        {template.format(**fill) for template in (*phrasings.train, *phrasings.held_out)} for phrasings, fill in facts
    ]

    def check(text: str) -> bool:
        rests = {text.strip()}
        for option in options:
            rests = {rest[len(told) :].lstrip() for rest in rests for told in option if rest.startswith(told)}
        return "" in rests

    return check


def _person(rng: Random, split: Split) -> tuple[str, str, list[Fact]]:
    person = draw_world(rng, split, 1, 0, 0, 0).people[0]
    fill: dict[str, object] = {"name": person.name, "trade": person.trade, "town": person.town, "age": person.age}
    told = rng.sample([("trade", tellings.TRADE), ("town", tellings.HOME), ("age", tellings.AGE)], rng.randint(2, 3))
    notes = ", ".join([f"name {person.name}", *(f"{key} {fill[key]}" for key, _ in told)])
    return person.name, notes, [(phrasings, fill) for _, phrasings in told]


def _market(rng: Random, split: Split) -> tuple[str, str, list[Fact]]:
    offers = draw_world(rng, split, 0, rng.randint(1, 3), 0, 0).offers
    notes = ", ".join(f"{offer.good} {offer.price} in {offer.town}" for offer in offers)
    return (
        "the market",
        notes,
        [(tellings.PRICE, {"good": o.good, "price": o.price, "town": o.town}) for o in offers],
    )


def _scene(rng: Random, split: Split) -> tuple[str, str, list[Fact]]:
    scene = draw_scene(rng, split, rng.randint(1, 4))
    notes = ", ".join(f"{look(piece)} {piece.cell}" for piece in scene)
    return "the scene", notes, [(tellings.PIECE, {"look": look(piece), "cell": piece.cell}) for piece in scene]
