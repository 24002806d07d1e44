"""The tasks of the Isles, by name."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from armillary.world.split import Split
from armillary.world.task import Task
from armillary.world.tasks import (
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

Maker = Callable[[Random, Split, int], Task]

TASKS: dict[str, Maker] = {
    "reading": reading.make,
    "addition": arithmetic.make_addition,
    "subtraction": arithmetic.make_subtraction,
    "sorting": ordering.make_sorting,
    "reversing": ordering.make_reversing,
    "extraction": extraction.make,
    "tools": tools.make,
    "dialogue": dialogue.make,
    "description": description.make,
}
"""Tasks that are trained and scored: a generator of the random stream, the side, and how many questions to ask."""

UNSCORED: dict[str, Maker] = {
    "scenes": reading.make_scene,
    "smalltalk": smalltalk.make,
    "repeating": repeating.make,
}
"""Tasks that are only trained."""
