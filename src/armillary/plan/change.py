"""A change to a deployment, real or imagined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from armillary.deployment import FleetSettings
from armillary.twin.member import ReplicaPlan


@dataclass(frozen=True)
class Change:
    """Something that could be different.

    Attributes:
        name: a few words.
        resource: what there would be more of, where that is all that changes; for the bottleneck.
        advice: whether it is a thing to do, and not only to imagine.
        whole: whether it is seen in a fleet, and not in one replica of it.
        cost: what an hour costs, as a factor.
        sense: whether it can only raise the knee (1) or only lower it (-1); 0: either.
    """

    name: str
    plan: Callable[[ReplicaPlan], ReplicaPlan] = lambda plan: plan
    fleet: Callable[[FleetSettings], FleetSettings] = lambda fleet: fleet
    resource: str | None = None
    advice: bool = False
    whole: bool = False
    cost: float = 1.0
    sense: int = 0
