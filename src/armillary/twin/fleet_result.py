"""What the simulation of a fleet found."""

from __future__ import annotations

from dataclasses import dataclass

from armillary.twin.census import Counts
from armillary.twin.member import ReplicaUse
from armillary.twin.outcome import SimulatedOutcomes


@dataclass(frozen=True, slots=True)
class FleetResult:
    """What a simulation found. Equal inputs give equal results, byte for byte.

    Attributes:
        requests: what became of each; `replica` counts replicas in the order in which they were started.
        duration_s: from the workload's start to the end of the last step.
        replicas: every one that there ever was.
        sizes: (moment, replicas up or starting), at the start and whenever that changed.
        restarted: requests that began anew because their replica failed; a request counts each time.
        counts: what the system counted by itself of that.
    """

    requests: SimulatedOutcomes
    duration_s: float
    replicas: tuple[ReplicaUse, ...]
    sizes: tuple[tuple[float, int], ...]
    restarted: int
    counts: Counts
