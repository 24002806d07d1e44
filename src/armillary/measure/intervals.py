"""Intervals for means and percentiles of series whose neighbours depend on each other, and of replications.

A queue that is long now is long a moment later, so a thousand waiting times of one run tell less than a thousand
independent ones. Batch means see that: means of long enough stretches hardly depend on each other, and how far they
scatter says how sure the whole is (Law and Kelton, Simulation Modeling and Analysis, chapter 9).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]

CONFIDENCE = 0.95
BATCHES = (32, 16, 8)
"""How many batches are tried; fewer and longer ones where the means of more still depend on each other."""

DEPENDENT_Z = 0.84  # a one-sided test at one in five: cheap to be wrong, since the next try only has fewer batches
MOST_CORRELATED = 0.9
_STEPS = 60


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval that holds the truth in a share `confidence` of such runs.

    `low` is -inf and `high` inf where the run was too short to bound it on that side.
    """

    value: float
    low: float
    high: float
    confidence: float = CONFIDENCE

    @property
    def relative(self) -> float:
        """The longer of the two sides, over the estimate: the precision that the run reached."""
        side = max(self.high - self.value, self.value - self.low)
        if side == 0:
            return 0.0
        return side / abs(self.value) if self.value else math.inf

    def of_one(self, replications: int) -> Interval:
        """Of the mean of so many replications, none below 0: where one further run lies with the same confidence. A run
        scatters more than their mean."""
        side = max(self.high - self.value, self.value - self.low)  # one of them may have been cut at what can be
        half = side * math.sqrt(replications + 1)
        return Interval(self.value, max(0.0, self.value - half), self.value + half, self.confidence)

    def holds(self, value: float) -> bool:
        """Whether `value` lies within."""
        return self.low <= value <= self.high


def student(share: float, freedom: int) -> float:
    """Student's t that a share `share` of the values stays below."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


def replications(values: Sequence[float] | Series, confidence: float = CONFIDENCE) -> Interval:
    """The mean of independent runs, one value each, by Student's t. One value has no interval but the whole line, and
    neither have values that are not all finite."""
    found = np.asarray(values, dtype=np.float64)
    if not len(found):
        raise ValueError("an interval of no values")
    mean = float(found.mean())
    if len(found) < 2 or not np.isfinite(found).all():
        return Interval(mean, -math.inf, math.inf, confidence)
    return _around(mean, float(found.std(ddof=1)) / math.sqrt(len(found)), len(found) - 1, confidence)


def mean_interval(series: Series, confidence: float = CONFIDENCE) -> Interval:
    """The mean of one run's series, in the order in which it came about, by batch means."""
    error, freedom = standard_error(series)
    return _around(float(np.mean(series)), error, freedom, confidence)


def quantile_interval(series: Series, level: float, confidence: float = CONFIDENCE) -> Interval:
    """A percentile of one run's series, in the order in which it came about, between two values of the series.

    For independent values the ranks between which the percentile lies are binomial, whatever the distribution.
    Dependent values count as fewer: as many as would make the share of values below the percentile scatter as
    batch means show that it does.
    """
    ordered = np.sort(series)
    count = len(ordered)
    if not count:
        raise ValueError("an interval of no values")
    value = float(ordered[max(0, math.ceil(level * count - 1e-9) - 1)])
    # Half where values are equal, so that a percentile of many equal values still has values on both sides.
    below = (series < value) + 0.5 * (series == value) if count > 1 else np.zeros(1)
    error, freedom = standard_error(below)
    spread = float(below.var())
    effective = float(count) if not spread or not math.isfinite(error) else min(count, spread / max(error**2, 1e-300))
    if math.isfinite(error):
        # An error that was itself estimated from a few batches is less sure than it looks.
        tail = (1 + confidence) / 2
        effective *= (student(tail, 10**6) / student(tail, freedom)) ** 2
    low, high = _ranks(level, max(effective, 1.0), (1 - confidence) / 2)
    return Interval(
        value,
        -math.inf if low is None else min(value, float(ordered[max(0, math.ceil(low * count - 1e-9) - 1)])),
        math.inf if high is None else max(value, float(ordered[min(count, math.ceil(high * count - 1e-9)) - 1])),
        confidence,
    )


def standard_error(series: Series) -> tuple[float, int]:
    """Standard error of a series' mean, and its degrees of freedom; infinite below two values a batch."""
    means, correlation = batch_means(series)
    if len(means) < 2:
        return math.inf, 1
    error = float(means.std(ddof=1)) / math.sqrt(len(means))
    # Means of the longest batches that still depend on each other: as of a first-order autoregression.
    return error * math.sqrt((1 + correlation) / (1 - correlation)), len(means) - 1


def batch_means(series: Series) -> tuple[Series, float]:
    """Means of batches as many as seem independent (von Neumann's test), and what correlation of neighbours is left.

    The series' first few values, less than one batch, belong to none.
    """
    means, correlation = np.asarray(series, dtype=np.float64)[:0], 0.0
    for batches in BATCHES:
        if len(series) < 2 * batches:
            continue
        size = len(series) // batches
        means = np.asarray(series, dtype=np.float64)[len(series) - size * batches :].reshape(batches, size).mean(axis=1)
        correlation = neighbours(means)
        if correlation < DEPENDENT_Z / math.sqrt(batches):
            return means, 0.0
    return means, min(max(correlation, 0.0), MOST_CORRELATED)


def neighbours(values: Series) -> float:
    """Correlation of each value with the next."""
    apart = values - values.mean()
    spread = float((apart**2).sum())
    return float((apart[1:] * apart[:-1]).sum()) / spread if spread > 0 else 0.0


def _around(mean: float, error: float, freedom: int, confidence: float) -> Interval:
    if not math.isfinite(error):
        return Interval(mean, -math.inf, math.inf, confidence)
    half = student((1 + confidence) / 2, freedom) * error
    return Interval(mean, mean - half, mean + half, confidence)


def _ranks(level: float, count: float, tail: float) -> tuple[float | None, float | None]:
    """Shares of the sample between which a percentile lies, but for a probability `tail` on each side.

    The number of values below it is binomial; through the incomplete beta function for counts that are not whole.
    """
    from scipy.special import betainc

    def above(rank: float) -> float:
        """Probability that at least `rank` of the values lie below the percentile."""
        return float(betainc(rank, count - rank + 1, level))

    low: float | None = None
    high: float | None = None
    if 1 - above(1.0) <= tail:
        low = _solve(lambda rank: 1 - above(rank) <= tail, 1.0, count) / count
    if above(count) <= tail:
        high = _solve(lambda rank: above(rank) > tail, min(1e-9, count), count) / count
    return low, high


def _solve(holds: Callable[[float], bool], start: float, end: float) -> float:
    """The border up to which `holds` does, where it does at `start` and may not at `end`."""
    for _ in range(_STEPS):
        middle = (start + end) / 2
        start, end = (middle, end) if holds(middle) else (start, middle)
    return (start + end) / 2
