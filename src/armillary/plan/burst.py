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
from armillary.twin.goals import of_means

BURST_S = 60.0
LEAD_S = 10.0
"""As usual, before it; a load is steady when it begins."""
WATCHED_S = 60.0
"""After it."""
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
    start, end = LEAD_S, LEAD_S + BURST_S
    whole = end + WATCHED_S + WINDOW_S
    usual = trials.load(rate, trials.question.spec.seed, max(20, round(whole * rate)))
    # What leads to its steady state is a part of the burst.
    ramp = trials.pace.answer_s
    extra = trials.load(rate, trials.question.spec.seed + 1, max(5, round((BURST_S - ramp) * rate)))
    begins = max(usual.begins, extra.begins)
    items = _moved(usual, ramp, begins, "") + _moved(extra, ramp, begins + start + ramp, "burst-")
    items.sort(key=lambda item: item.arrival or 0.0)
    deployed = trials.deployed(design)
    run = simulate_fleet(deployed.fleet, deployed.build, Workload(tuple(items))).requests
    trials.simulated += len(run)
    start, end = begins + start, begins + end
    ttft = run.ttft[(run.due >= start) & (run.due < end)]
    ttft = ttft[~np.isnan(ttft)]
    slow = float(np.quantile(ttft, 0.95)) if len(ttft) else 0.0
    slo = of_means(trials.question.slo)  # gaps are not told by when they were
    for second in range(int(WATCHED_S) + 1):
        window = (run.due >= end + second) & (run.due < end + second + WINDOW_S)
        if window.any():
            attained, _ = judge(run.select(window), slo, usual.workload.slo_classes)
            if all(goal.met for goals in attained.values() for goal in goals):
                return Burst(slow, float(second))
    return Burst(slow, inf)


def _moved(load: Load, ramp: float, begins: float, name: str) -> list[WorkItem]:
    """The requests of a load, moved so that what is measured of it begins then; what fills the cache stays before."""
    found = []
    for item in load.workload.items:
        arrival = item.arrival or 0.0
        if arrival >= load.begins - ramp - 1e-9:
            arrival += begins - load.begins
        session = None if item.session is None else f"{name}{item.session}"
        found.append(item.model_copy(update={"id": f"{name}{item.id}", "arrival": arrival, "session": session}))
    return found
