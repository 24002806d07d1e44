"""Whether a run settled: where its warm-up ends, whether it kept up, and whether its percentiles mean anything.

A percentile describes a steady state. A server that falls behind has none: each request waits longer than the one
before, and what is measured is how long the run was. So every run is judged first, and an unstable one gets no
percentiles.

Warm-up is cut by MSER-5 (White, Cobb and Spratt 2000). A backlog is seen by what it does not do: in the second half of
the run the number of requests under way never comes back to what was usual in the first, and on average it is much
higher; a queue that keeps up comes back again and again. A drift of latencies is tested by regression on batch means,
whose number is chosen so that they hardly depend on each other: a stationary run much longer than it remembers is
called drifting in about the share `FALSE_ALARM` of the cases. A queue just below saturation remembers for so long that
a short run cannot be told from one above: where neighbouring eighths of a run still depend on each other, it is called
short. How often runs of known queues are called what, docs/workloads.md says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from armillary.measure.intervals import BATCHES, DEPENDENT_Z, MOST_CORRELATED, batch_means, neighbours
from armillary.measure.outcomes import Outcomes

Series = NDArray[np.float64]
Verdict = Literal["steady", "drifting", "unstable", "short", "batch"]

FALSE_ALARM = 0.01
_LEAST = 40
_STAYS = 5.0
_BACKLOG_GROWTH = 1.4
_DRIFT = 0.25
_BATCH = 5
_CLEAR = 3.0
_FIRST = 5


@dataclass(frozen=True)
class Trend:
    """A straight line through a series.

    Attributes:
        change: from its beginning to its end, in the series' unit.
        relative: the same over the series' mean.
        chance: probability that a series without trend would show one as clear, in either direction.
    """

    change: float
    relative: float
    chance: float


@dataclass(frozen=True)
class Backlog:
    """What the number of requests under way did over a run, its first filling left out.

    Attributes:
        growth: its mean in the second half over its mean in the first.
        floor: its lowest value in the second half over its median in the first.
    """

    growth: float
    floor: float

    @property
    def unstable(self) -> bool:
        """Whether it grew and never came back."""
        return self.growth > _BACKLOG_GROWTH and self.floor > 1


@dataclass(frozen=True)
class Steadiness:
    """What a run is worth.

    Attributes:
        verdict: `steady`: it settled. `drifting`: it kept up, but latencies rose or fell all through what was kept.
            `unstable`: ever more requests were under way, so it has no percentiles. `short`: too little to tell.
            `batch`: all requests were there at once, so there was nothing to settle; percentiles describe this batch.
        warmup: requests left out as warm-up, the first due.
        start_s: from when on requests count.
        backlog: of the requests under way; None where it was not looked for.
        drift: trend of the time to first token; None likewise.
    """

    verdict: Verdict
    warmup: int = 0
    start_s: float = 0.0
    backlog: Backlog | None = None
    drift: Trend | None = None

    @property
    def has_percentiles(self) -> bool:
        """Whether percentiles of the run describe more than its length."""
        return self.verdict != "unstable"

    def __str__(self) -> str:
        return _TEXTS[self.verdict]


_TEXTS: dict[Verdict, str] = {
    "steady": "steady",
    "drifting": "drifting: latencies rose or fell all through the run",
    "unstable": "unstable: ever more requests were under way",
    "short": "too short to tell",
    "batch": "all at once, nothing to settle",
}


def mser5(series: Series) -> int:
    """How many leading values to leave out: the cut after which the mean of the rest has the smallest standard error.

    Means of five values are compared, and at most half of the series is cut.
    """
    batches = len(series) // _BATCH
    if batches < 2:
        return 0
    means = np.asarray(series[: batches * _BATCH], dtype=np.float64).reshape(batches, _BATCH).mean(axis=1)
    means -= means.mean()  # the squares below would lose the digits of a small spread about a large mean
    left = batches - np.arange(batches // 2 + 1)
    total, squares = np.cumsum(means[::-1])[::-1], np.cumsum(means[::-1] ** 2)[::-1]
    errors = (squares[: len(left)] - total[: len(left)] ** 2 / left) / left.astype(np.float64) ** 2
    return int(np.argmin(errors)) * _BATCH


def trend(series: Series) -> Trend:
    """A line through batch means by least squares, its error widened by what correlation of neighbours is left.

    Below sixteen values nothing is seen.
    """
    from scipy.special import stdtr

    values = np.asarray(series, dtype=np.float64)
    mean = float(values.mean())
    change = slope = error = 0.0
    freedom = 1
    for batches in BATCHES:
        if len(values) < 2 * batches:
            continue
        size = len(values) // batches
        means = values[len(values) - size * batches :].reshape(batches, size).mean(axis=1)
        place = np.arange(batches) - (batches - 1) / 2
        spread = float((place**2).sum())
        slope = float((place * means).sum()) / spread
        change = slope * batches
        rest = means - means.mean() - slope * place
        freedom = batches - 2
        # A line takes away some of the correlation along with the trend, about 2/batches of it.
        correlation = neighbours(rest) + 2 / batches
        error = math.sqrt(float((rest**2).sum()) / freedom / spread)
        if correlation < DEPENDENT_Z / math.sqrt(batches):
            break
        held = min(correlation, MOST_CORRELATED)
        error *= math.sqrt((1 + held) / (1 - held))
    if error:
        chance = 2 * float(stdtr(freedom, -abs(slope) / error))
    else:
        chance = 0.0 if slope else 1.0
    return Trend(change, change / abs(mean) if mean else 0.0, chance)


def under_way(run: Outcomes) -> Series:
    """How many requests were under way just after each one was due, in order of their due times."""
    due = np.sort(run.due)
    ended = np.sort(run.end[~np.isnan(run.end)])
    return np.asarray(np.arange(1, len(due) + 1) - np.searchsorted(ended, due, side="right"), dtype=np.float64)


def steadiness(run: Outcomes, users: int | None = None) -> Steadiness:
    """The verdict on `run`.

    Args:
        users: of a closed loop, in which no more can be under way than there are users; None: an open loop.
    """
    if np.isnan(run.due).any():
        run = run.select(~np.isnan(run.due))  # never sent
    order = np.argsort(run.due, kind="stable")
    due, ok = run.due[order], run.ok[order]
    if len(due) > 1 and users is None and due[-1] == due[0]:
        return Steadiness("batch")
    ttft = run.ttft[order][ok]
    if len(ttft) < _LEAST:
        return Steadiness("short")
    cut = _clear(ttft, mser5(ttft))
    settled = ttft[cut:]
    drift = trend(settled)
    stay = _stay(run, ttft)
    backlog = None if users is not None else _backlog(due, under_way(run), stay)
    if due[-1] - due[0] < _STAYS * stay:
        return Steadiness("short", backlog=backlog, drift=drift)
    if backlog is not None and backlog.unstable:
        return Steadiness("unstable", backlog=backlog, drift=drift)
    start = float(due[ok][cut])
    warmup = int(np.searchsorted(due, start)) if cut else 0
    found: Verdict = "steady"
    if drift.chance < FALSE_ALARM and abs(drift.relative) > _DRIFT:
        found = "drifting"
    elif batch_means(settled)[1]:
        found = "short"
    return Steadiness(found, warmup, start if cut else 0.0, backlog, drift)


def _clear(series: Series, cut: int) -> int:
    """`cut` where what lies before it differs from the rest by more than chance would have it; else 0.

    The smallest of many standard errors is found somewhere in noise too, and a short run can ill afford it.
    """
    head, rest = series[:cut], series[cut:]
    if not cut or abs(head.mean() - rest.mean()) <= _CLEAR * rest.std() * math.sqrt(1 / len(head) + 1 / len(rest)):
        return 0
    return cut


def _backlog(due: Series, counts: Series, stay: float) -> Backlog | None:
    """`counts` of the requests under way as each was `due`; while the first ones stay, it only fills."""
    counts = counts[due >= due[0] + stay]
    half = len(counts) // 2
    if half < 2:
        return None
    first, second = counts[:half], counts[half:]
    return Backlog(float(second.mean() / first.mean()), float(second.min() / np.median(first)))


def kept(run: Outcomes, found: Steadiness) -> Outcomes:
    """What `run` holds after its warm-up."""
    return run.select(run.due >= found.start_s) if found.warmup else run


def _stay(run: Outcomes, ttft: Series) -> float:
    """About how long a request stays that finds the server free: what a run must be many times as long as.

    Where many times too much comes, none does but the first ones, and the others would make every run look short.
    """
    first = min(float(np.quantile(ttft, 0.05)), float(ttft[:_FIRST].min()))
    return first + float(np.mean((run.end - run.first)[run.ok]))
