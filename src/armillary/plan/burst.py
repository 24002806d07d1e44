"""What twice the rate for a minute does, and for how long.

On a machine that serves thousands of requests a second, most of that minute tells nothing new: it keeps up, or its
queue is full after a second or two and it refuses the rest, and from then on one second is as the next. So as much of
it is simulated as takes `MOST` requests, and the rest is taken to be as the second half of that. Where the queue grew
in that half (it is almost long enough, or hardly limited), it is taken to grow on at the same pace until it is full,
and to take the longer until it is empty: the fluid approximation of a queue to which more comes than leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np

from armillary.measure.outcomes import Outcomes
from armillary.measure.slo import Slo, judge
from armillary.measure.steady import FALSE_ALARM, trend
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
STEPS = 10
"""Moments in the length of a window from which on it is looked whether the service level holds again."""
MOST = 20_000
"""Requests that are simulated of a burst, and of what comes after it."""
ENOUGH = 4_000
"""Requests that are enough to lead to it, and to see whether the service level holds again."""
ANSWERS = 10.0
"""Times as long as an answer takes, in which a machine gets as busy as it will be."""


@dataclass(frozen=True)
class Burst:
    """What it does.

    Attributes:
        ttft_p95: seconds, of the requests that came during it and were served.
        lost: share of the requests that came during it and were refused by a full queue, or ran out of time.
        recovery_s: seconds from its end until requests meet the service level again; inf where none did while they
            were watched.
        simulated_s: seconds of it that were simulated.
        growing: whether the queue grew in the second half of that, and was taken to grow on.
    """

    ttft_p95: float
    lost: float
    recovery_s: float
    simulated_s: float
    growing: bool


@dataclass(frozen=True)
class _Course:
    """Seconds of what is simulated: before the burst, of it, after it, and of what is judged at a time after it."""

    lead: float
    burst: float
    watched: float
    window: float

    @staticmethod
    def at(rate: float, answer: float) -> _Course:
        """At a usual rate, where an answer takes so many seconds."""
        busy = ANSWERS * answer
        return _Course(
            min(LEAD_S, max(busy, ENOUGH / rate)),
            min(BURST_S, max(busy, MOST / (2 * rate))),
            min(WATCHED_S, max(busy, MOST / rate)),
            min(WINDOW_S, max(busy, ENOUGH / rate)),
        )


def burst(trials: Trials, asked: tuple[Design, float]) -> Burst:
    """Of one replica of a design, under its share of a rate for the whole: others would even it out a little."""
    design, rate = asked
    design, rate = design.at(1), rate / design.replicas
    # What leads to its steady state is a part of the burst.
    ramp = trials.pace.answer_s
    course = _Course.at(rate, ramp)
    whole = course.lead + course.burst + course.watched + course.window
    seed, memory = trials.question.spec.seed, trials.memory(design)
    usual = trials.load(rate, seed, max(20, round(whole * rate)), memory)
    extra = trials.load(rate, seed + 1, max(5, round((course.burst - ramp) * rate)), memory / 2)
    begins = max(usual.begins, extra.begins)
    start = begins + course.lead
    items = _moved(usual, ramp, begins, "") + _moved(extra, ramp, start + ramp, "burst-")
    items.sort(key=lambda item: item.arrival or 0.0)
    deployed = trials.deployed(design)
    run = simulate_fleet(deployed.fleet, deployed.build, Workload(tuple(items))).requests
    trials.simulated += len(run)
    end = start + course.burst
    slo = of_means(trials.question.slo)  # gaps are not told by when they were
    growth = _growth(_due(run, end - course.burst / 2, end), course, deployed.kinds[0].config.max_waiting)
    slow, lost = _minute(_due(run, start, end), _due(run, end - course.burst / 2, end), course, growth)
    again = _again(run, end, course, lambda some: _met(some, slo, usual)) * growth.longer
    return Burst(slow, lost, again if again <= WATCHED_S else inf, course.burst, growth.most > 0)


@dataclass(frozen=True)
class _Growth:
    """How the queue of a burst goes on after what was simulated of it.

    Attributes:
        pace: seconds by which the time to first token grows each second.
        most: seconds by which it grows in all; 0 where it does not.
        longer: how many times as long the queue is at the end of the minute.
    """

    pace: float = 0.0
    most: float = 0.0
    longer: float = 1.0


def _growth(half: Outcomes, course: _Course, max_waiting: int) -> _Growth:
    """By the second half of a burst.

    Args:
        max_waiting: requests that fit into the queue.
    """
    served = half.ttft[~np.isnan(half.ttft)]
    if course.burst >= BURST_S or len(served) < 2:
        return _Growth()
    seen = trend(served)
    if seen.change <= 0 or seen.chance > FALSE_ALARM:
        return _Growth()
    seconds = course.burst / 2
    pace, now = seen.change / seconds, float(served.mean()) + seen.change / 2
    leaving = len(served) / seconds / (1 + pace)  # a second; what waits is pace times as much
    full = max_waiting / leaving  # the wait of whoever finds room for one
    most = min(pace * (BURST_S - course.burst), max(0.0, full - now))
    return _Growth(pace, most, 1 + most / now)


def _minute(during: Outcomes, half: Outcomes, course: _Course, growth: _Growth) -> tuple[float, float]:
    """The p95 of the time to first token of all that come in a burst, and the share of them that is lost.

    Args:
        during: what was simulated of it.
        half: the second half of that, as which the rest is.
    """
    rest = round(len(half) * (BURST_S - course.burst) / (course.burst / 2))
    like = np.arange(rest) % max(1, len(half))
    later = np.minimum(BURST_S - course.burst, (np.arange(rest) // max(1, len(half)) + 1) * course.burst / 2)
    ttft = np.concatenate([during.ttft, half.ttft[like] + np.minimum(growth.pace * later, growth.most)])
    ok = np.concatenate([during.ok, half.ok[like]])
    served = ttft[~np.isnan(ttft)]
    # Of what comes to a full queue, as much is refused as it would have grown by.
    lost = (~ok).sum() + (growth.pace * later > growth.most).sum() * growth.pace / (1 + growth.pace)
    return float(np.quantile(served, 0.95)) if len(served) else 0.0, float(lost / max(1, len(ok)))


def _again(run: Outcomes, end: float, course: _Course, met: Callable[[Outcomes], bool]) -> float:
    """Seconds from the end of a burst until the service level holds again; inf where it never will.

    Where it did not while it was watched, and the queue got shorter, it is taken to go on getting shorter as fast.
    """
    for place in range(round(course.watched / course.window * STEPS) + 1):
        after = place * course.window / STEPS
        window = _due(run, end + after, end + after + course.window)
        if len(window) and met(window):
            return after
    watched = _due(run, end, end + course.watched)
    served = watched.ttft[~np.isnan(watched.ttft)]
    if course.watched >= WATCHED_S or len(served) < 2:
        return inf
    seen = trend(served)
    if seen.change >= 0 or seen.chance > FALSE_ALARM:
        return inf
    return course.watched * (1 - (float(served.mean()) + seen.change / 2) / seen.change)


def _met(run: Outcomes, slo: Slo, load: Load) -> bool:
    attained, _ = judge(run, slo, load.workload.slo_classes)
    return all(goal.met for goals in attained.values() for goal in goals)


def _due(run: Outcomes, start: float, end: float) -> Outcomes:
    """What of a run was due from one moment to another."""
    return run.select((run.due >= start) & (run.due < end))


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
