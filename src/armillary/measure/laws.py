"""Operational laws: what must hold between the totals of any run, however its arrivals and services were distributed.

Denning and Buzen (1978). Each law compares two numbers that were counted in different places (a request's own times
and what stood in the system; a server's busy time and its speed; tokens by step and tokens by request), so a run in
which one does not hold has lost, doubled or misdated something. Bounds say how much more of the same could pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from armillary.measure.outcomes import Outcomes

TOLERANCE = 0.01


@dataclass(frozen=True)
class RunTotals:
    """The totals of a run over `[0, duration_s]`.

    Attributes:
        duration_s: how long was counted.
        arrivals, completions: requests that came, and that left (in whatever way), within it.
        residence_s: seconds that requests spent in the system, summed over the requests from their own times.
        area_s: the integral of the number in the system over time, from the system's side; None if not counted.
        busy_s: seconds in which the server worked, summed over servers; None if not counted.
        steps: visits to the server (steps of the engine), and `step_s` their mean length, counted apart from `busy_s`.
        servers: how many there are, on average.
        flows: name -> (counted at the server, summed over requests): totals that must agree by the forced flow law,
            such as tokens generated.
        users: of a closed loop, with `think_s` seconds of thought on average; None: open.
    """

    duration_s: float
    arrivals: int
    completions: int
    residence_s: float
    area_s: float | None = None
    busy_s: float | None = None
    steps: int | None = None
    step_s: float | None = None
    servers: float = 1
    flows: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    users: int | None = None
    think_s: float = 0.0


@dataclass(frozen=True)
class Law:
    """Two sides that must be equal."""

    name: str
    left: float
    right: float
    says: str
    """What the sides are."""

    @property
    def difference(self) -> float:
        """Of the sides, over the larger one."""
        largest = max(abs(self.left), abs(self.right))
        return abs(self.left - self.right) / largest if largest else 0.0

    def holds(self, tolerance: float = TOLERANCE) -> bool:
        """Whether the sides agree."""
        return self.difference <= tolerance

    def __str__(self) -> str:
        sign = "=" if self.holds() else "≠"
        return f"{self.says}: {self.left:.4g} {sign} {self.right:.4g}"


@dataclass(frozen=True)
class Bound:
    """A value that cannot lie above a limit. `value / limit` is how much of what is possible was used."""

    name: str
    value: float
    limit: float
    says: str

    def holds(self, tolerance: float = TOLERANCE) -> bool:
        """Whether the value keeps the limit."""
        return self.value <= self.limit * (1 + tolerance)

    def __str__(self) -> str:
        return f"{self.says}: {self.value:.4g} {'≤' if self.holds() else '>'} {self.limit:.4g}"


def check(totals: RunTotals) -> tuple[Law | Bound, ...]:
    """Every law and bound that the totals have the numbers for."""
    seconds = totals.duration_s
    if not seconds > 0:
        return ()
    found: list[Law | Bound] = []
    rate = totals.completions / seconds
    if totals.area_s is not None and totals.completions:
        found.append(
            Law("little", totals.area_s / seconds, rate * totals.residence_s / totals.completions,
                "Little's law, requests under way and rate times their stay")
        )  # fmt: skip
    if totals.busy_s is not None and totals.steps is not None and totals.step_s is not None:
        found.append(
            Law("utilisation", totals.busy_s / (seconds * totals.servers),
                totals.steps / seconds * totals.step_s / totals.servers,
                "utilisation law, share of time busy and steps per second times their length")
        )  # fmt: skip
    found += [
        Law("forced flow", served / seconds, asked / seconds, f"forced flow, {name}/s served and asked for")
        for name, (served, asked) in totals.flows.items()
    ]
    if totals.completions and totals.busy_s:
        demand = totals.busy_s / totals.completions
        limit, says = totals.servers / demand, "bottleneck, requests/s and the most at this work each"
        if totals.users is not None:
            # Nobody stays for less than the work on it, so users come round no faster than this.
            alone = totals.users / (demand + totals.think_s)
            if alone < limit:
                limit, says = alone, "asymptote, requests/s and users over work and thought"
        found.append(Bound("bottleneck", rate, limit, says))
    return tuple(found)


def client_totals(run: Outcomes, duration_s: float, users: int | None = None, think_s: float = 0.0) -> RunTotals:
    """The totals that a client knows. The number under way is counted by sweeping over arrivals and ends.

    Both sides of Little's law then come from the same times, and it finds no more than ends after the run's.

    Requests without an end were under way until `duration_s`.
    """
    end = np.where(np.isnan(run.end), duration_s, run.end)
    moments = np.minimum(np.concatenate([run.due, end]), duration_s)
    change = np.concatenate([np.ones(len(run)), -np.ones(len(run))])
    order = np.argsort(moments, kind="stable")
    spans = np.diff(moments[order], append=duration_s)
    return RunTotals(
        duration_s=duration_s,
        arrivals=len(run),
        completions=int((~np.isnan(run.end)).sum()),
        residence_s=math.fsum((end - run.due).tolist()),
        area_s=float((np.cumsum(change[order]) * spans).sum()),
        users=users,
        think_s=think_s,
    )
