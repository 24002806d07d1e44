"""What twice the rate for a minute does, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np

from armillary.measure.slo import judge
from armillary.measure.workload import WorkItem, Workload
from armillary.plan.designs import Design
from armillary.plan.steady_load import Load
from armillary.plan.trials import Trials
from armillary.twin.fleet import simulate_fleet

BURST_S = 60.0
LEAD_S = 30.0
"""As usual, before it."""
WATCHED_S = (20.0, 120.0)
"""After it: so long at first, and longer where the service level does not hold again by then."""
WINDOW_S = 10.0
"""Requests of so many seconds must meet the service level for it to hold again."""


@dataclass(frozen=True)
class Burst:
    """What it does.

    Attributes:
        ttft_p95: seconds, of the requests that came during it.
        recovery_s: seconds from its end until requests meet the service level again; inf where none did while they
            were watched.
    """

    ttft_p95: float
    recovery_s: float


def burst(trials: Trials, asked: tuple[Design, float]) -> Burst:
    """Of one replica of a design, under its share of a rate for the whole: others would even it out a little."""
    design, rate = asked
    design, rate = design.at(1), rate / design.replicas
    found = Burst(0.0, inf)
    for watched in WATCHED_S:
        found = _watched(trials, design, rate, watched)
        if found.recovery_s < inf:
            break
    return found


def _watched(trials: Trials, design: Design, rate: float, watched: float) -> Burst:
    start, end = LEAD_S, LEAD_S + BURST_S
    whole = end + watched + WINDOW_S
    usual = trials.load(rate, trials.question.spec.seed, max(20, round(whole * rate)))
    extra = trials.load(rate, trials.question.spec.seed + 1, max(5, round(BURST_S * rate)))
    begins = max(usual.begins, extra.begins)
    items = _shifted(usual, begins, 0.0, "") + _shifted(extra, begins, start, "burst-")
    items.sort(key=lambda item: item.arrival or 0.0)
    deployed = trials.deployed(design)
    run = simulate_fleet(deployed.fleet, deployed.build, Workload(tuple(items))).requests
    trials.simulated += len(run)
    start, end = begins + start, begins + end
    ttft = run.ttft[(run.due >= start) & (run.due < end)]
    ttft = ttft[~np.isnan(ttft)]
    slow = float(np.quantile(ttft, 0.95)) if len(ttft) else 0.0
    for second in range(int(watched) + 1):
        window = (run.due >= end + second) & (run.due < end + second + WINDOW_S)
        if window.any():
            attained, _ = judge(run.select(window), trials.question.slo, usual.workload.slo_classes)
            if all(goal.met for goals in attained.values() for goal in goals):
                return Burst(slow, float(second))
    return Burst(slow, inf)


def _shifted(load: Load, begins: float, by: float, name: str) -> list[WorkItem]:
    """The requests of a load, what is measured of it moved so that it begins at `begins + by`."""
    found = []
    for row, item in enumerate(load.workload.items):
        move = 0.0 if row < load.before else begins + by - load.begins
        session = None if item.session is None else f"{name}{item.session}"
        changes = {"id": f"{name}{item.id}", "arrival": (item.arrival or 0.0) + move, "session": session}
        found.append(item.model_copy(update=changes))
    return found
