"""Percentiles with their intervals, the spread of repeats, and runs that are interleaved to be comparable."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from armillary.measure.intervals import CONFIDENCE, quantile_interval

T = TypeVar("T")

LEVELS = (0.5, 0.9, 0.95, 0.99)
_RESAMPLES = 1000
_RESAMPLES_LARGE = 300
_LARGE = 20_000


class Quantile(BaseModel):
    """One percentile and its 95 % interval; None where the sample is too small to bound it on that side."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    low: float | None
    high: float | None


class Distribution(BaseModel):
    """A sample in figures. The unit is the sample's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int
    mean: float
    minimum: float
    maximum: float
    p50: Quantile
    p90: Quantile
    p95: Quantile
    p99: Quantile


def quantile(values: Sequence[float] | NDArray[np.float64], level: float) -> float:
    """The smallest value that at least the share `level` of the sample does not exceed (no interpolation)."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if not len(ordered):
        raise ValueError("quantile of an empty sample")
    return float(ordered[max(0, math.ceil(level * len(ordered) - 1e-9) - 1)])


def distribution(
    values: Sequence[float] | NDArray[np.float64],
    groups: Sequence[int] | NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Distribution | None:
    """Summary of a sample, None where it is empty.

    Args:
        values: the sample, in the order in which it came about: neighbours may depend on each other.
        groups: which group (request) each value belongs to. Values of one group depend on each other, so a bootstrap
            of whole groups makes the intervals; None: order statistics do (`intervals.quantile_interval`).
        seed: of the bootstrap.
    """
    data = np.asarray(values, dtype=np.float64)
    if not len(data):
        return None
    found = {}
    if groups is None:
        for level in LEVELS:
            interval = quantile_interval(data, level)
            found[_name(level)] = Quantile(value=interval.value, low=_bound(interval.low), high=_bound(interval.high))
    else:
        owner = np.unique(np.asarray(groups), return_inverse=True)[1]
        order = np.argsort(data, kind="stable")
        ordered = data[order]
        draws = _resampled_groups(ordered, owner[order], np.random.default_rng(seed))
        tail = (1 - CONFIDENCE) / 2
        for column, level in enumerate(LEVELS):
            found[_name(level)] = Quantile(
                value=quantile(ordered, level),
                low=quantile(draws[:, column], tail),
                high=quantile(draws[:, column], 1 - tail),
            )
    return Distribution(
        count=len(data), mean=float(data.mean()), minimum=float(data.min()), maximum=float(data.max()), **found
    )


def _name(level: float) -> str:
    return f"p{round(level * 100)}"


def _bound(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _resampled_groups(
    data: NDArray[np.float64], owner: NDArray[np.intp], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Percentiles of bootstrap samples of sorted `data`, one row a sample, each sample made of whole groups.

    `owner` is the group of each value, from 0 without holes.
    """
    group_count = int(owner.max()) + 1
    resamples = _RESAMPLES if len(data) <= _LARGE else _RESAMPLES_LARGE
    draws = np.empty((resamples, len(LEVELS)))
    probabilities = np.full(group_count, 1.0 / group_count)
    for r in range(resamples):
        # How often each group was drawn is the weight of each of its values.
        weights = np.cumsum(rng.multinomial(group_count, probabilities)[owner])
        targets = np.maximum(1, np.ceil(np.asarray(LEVELS) * weights[-1] - 1e-9))
        draws[r] = data[np.minimum(np.searchsorted(weights, targets), len(data) - 1)]
    return draws


@dataclass(frozen=True)
class Spread:
    """The median of repeats, and how far they lie apart."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def as_json(self) -> dict[str, object]:
        """Median, extremes and every value."""
        return {"median": self.median, "low": self.low, "high": self.high, "values": list(self.values)}

    def __format__(self, spec: str) -> str:
        spec = spec or ".3g"
        return f"{self.median:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def interleaved(
    variants: Mapping[str, Callable[[], T]],
    repeats: int,
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, list[T]]:
    """Run every variant `repeats` times, in turns, every other round in reverse order.

    A machine drifts; what runs side by side in one round drifts together, so ratios within a round are what
    can be compared.

    Args:
        progress: called with the variant's name and the round before each run.
    """
    results: dict[str, list[T]] = {name: [] for name in variants}
    for turn in range(repeats):
        names = list(variants) if turn % 2 == 0 else list(variants)[::-1]
        for name in names:
            if progress is not None:
                progress(name, turn)
            results[name].append(variants[name]())
    return results


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Ratio of each round, paired."""
    return Spread(tuple(a / b for a, b in zip(numerator, denominator, strict=True)))
