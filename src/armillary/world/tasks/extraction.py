"""Extraction: what a passage says about one person or good, as JSON with the keys asked for."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from armillary.world.facts import draw_world
from armillary.world.split import Phrasings, Split
from armillary.world.task import Task, assistant, same_json, user
from armillary.world.tasks.reading import all_in_turn
from armillary.world.tellings import tell_world

ASK = Phrasings(
    train=(
        "{text}\nGive {keys} of {subject} as JSON.",
        "{text}\nWrite {subject} as JSON with {keys}.",
        "Read this: {text}\nJSON of {subject} with keys {keys}:",
        "{text} What is {subject} as JSON with keys {keys}?",
        "{text}\n{subject} as JSON: {keys}",
        "{text}\nWhat are {keys} of {subject}? Answer as JSON.",
        "{text}\nJSON with {keys} of {subject}:",
        "Read this: {text}\nGive {keys} of {subject} as JSON.",
        "{text} Give JSON for {subject}: {keys}",
        "{text}\n\nWrite {keys} of {subject} as JSON.",
        "Read this: {text} What is {subject} as JSON: {keys}?",
        "{text}\nNow {subject} as JSON with {keys}.",
        "{text}\nGive a JSON record of {subject} with keys {keys}.",
    ),
    held_out=(
        "{text}\nGive {subject} as JSON with keys {keys}.",
        "Read this: {text}\nWrite {keys} of {subject} as JSON.",
    ),
)
NEXT = Phrasings(
    train=(
        "Give {keys} of {subject} as JSON.",
        "{subject} as JSON: {keys}",
        "Write {subject} as JSON with {keys}.",
        "Now {subject} as JSON with {keys}.",
        "JSON of {subject} with keys {keys}:",
        "Now {keys} of {subject} as JSON.",
        "And {subject}, with keys {keys}?",
    ),
    held_out=("Give {subject} as JSON with keys {keys}.",),
)


def make(rng: Random, split: Split, questions: int) -> Task:
    """A passage and `questions` records of it to extract, one an exchange."""
    world = draw_world(rng, split, rng.randint(1, 2), rng.randint(1, 2), 0, 0)
    text = tell_world(rng, split, world)
    records: list[tuple[str, dict[str, Any]]] = [
        *((p.name, {"name": p.name, "trade": p.trade, "town": p.town, "age": p.age}) for p in world.people),
        *((o.good, {"good": o.good, "price": o.price, "town": o.town}) for o in world.offers),
    ]
    messages = []
    for number, (subject, record) in enumerate(all_in_turn(rng, records, questions)):
        wanted = pick_keys(rng, record)
        phrasings = NEXT if number else ASK
        question = phrasings.pick(rng, split).format(text=text, subject=subject, keys=", ".join(wanted))
        messages += [user(question), assistant(json.dumps(wanted))]
    answer = messages.pop()["content"]
    truth = json.loads(answer)
    return Task("extraction", messages, answer, accepts=lambda given: same_json(given, truth))


def pick_keys(rng: Random, record: dict[str, Any]) -> dict[str, Any]:
    """Two or more of the record's keys, in random order."""
    keys = rng.sample(sorted(record), rng.randint(2, len(record)))
    return {key: record[key] for key in keys}
