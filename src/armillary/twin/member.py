"""One replica of a fleet, with what happens to it besides serving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import inf

from armillary.core.config import SchedulerConfig
from armillary.core.stats import SchedulerStats
from armillary.deployment import ReplicaSettings
from armillary.twin.cost import CostModel
from armillary.twin.executor import StepTotals
from armillary.twin.handover import Link
from armillary.twin.replica import Hear, Replica
from armillary.twin.spread import Draws, Spread


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """What a kind of replica is.

    Attributes:
        config: what its scheduler is told.
        cost: predicts its steps; each replica asks a model of its own.
        speed: beside other kinds of replicas, for routes.
        kv_bytes: of the keys and values of one position, where they are handed on.
        spread: how steps vary around what `cost` predicts; None: not at all.
    """

    config: SchedulerConfig
    cost: CostModel
    speed: float = 1.0
    kv_bytes: int = 0
    spread: Spread | None = None


Build = Callable[[ReplicaSettings], ReplicaPlan]
"""Makes the plan of one replica."""


class State(StrEnum):
    """Of a replica."""

    STARTING = "starting"
    UP = "up"
    LEAVING = "leaving"
    """Takes no more requests, and is gone once it has finished those it has."""
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class ReplicaUse:
    """What came of one replica.

    Attributes:
        kind: its place in `fleet.replicas`.
        held_s: seconds from its start to its end, or to the end of the simulation, failures included: what is paid for.
        failures: how often it failed.
        kv_blocks: KV blocks that it has.
        counts: of its scheduler, since it last began.
    """

    kind: int
    held_s: float
    failures: int
    kv_blocks: int
    steps: StepTotals
    counts: SchedulerStats


class Member:
    """A replica, and its life.

    Args:
        seed: of how its steps vary; each replica draws for itself.
    """

    def __init__(
        self,
        index: int,
        kind: int,
        settings: ReplicaSettings,
        build: Build,
        hear: Hear,
        now: float,
        link: Link,
        leap: bool,
        seed: int,
    ) -> None:
        self.plan = build(settings)
        self.index = index
        self.link = link
        self.kind = kind
        self.role = settings.role
        self.state = State.STARTING
        self.began = now
        self.ended: float | None = None
        self.failures = 0
        self.idle_s = 0.0
        """Seconds that its clock passed without a step or a pause after one."""
        self.wakes = inf
        """When it is to be looked at next."""
        spread = self.plan.spread
        vary = None if spread is None else Draws(spread, f"{seed}/{index}")
        self.replica = Replica(self.plan.config, self.plan.cost, hear, name=str(index), start=now, vary=vary, leap=leap)

    def step(self, until: float) -> bool:
        """As of `Replica.step`."""
        before = self.replica.clock.now()
        if self.replica.step(until):
            return True
        self.idle_s += self.replica.clock.now() - before
        return False

    def advance(self, until: float) -> None:
        """As of `Replica.advance`."""
        while self.step(until):
            pass

    def recover(self, at: float) -> None:
        """As of `Replica.recover`."""
        before = self.replica.clock.now()
        self.replica.recover(at)
        self.idle_s += self.replica.clock.now() - before

    def use(self, now: float) -> ReplicaUse:
        """What has come of it up to now."""
        until = now if self.ended is None else self.ended
        replica, blocks = self.replica, self.plan.config.num_blocks
        counts = replica.engine.scheduler.stats
        return ReplicaUse(self.kind, until - self.began, self.failures, blocks, replica.executor.totals, counts)
