"""How long to run, or how often, until an estimate is as precise as was asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from armillary.measure.intervals import CONFIDENCE, Interval, Series, replications

_MARGIN = 1.1
_STRIDE = 4


@dataclass(frozen=True)
class Precise:
    """An estimate.

    Attributes:
        wanted: the precision asked for: the longer side of the interval over the value.
        took: requests, or replications.
    """

    interval: Interval
    wanted: float
    took: int

    @property
    def reached(self) -> bool:
        """Whether it is as precise as was asked."""
        return self.interval.relative <= self.wanted


def run_length(
    run: Callable[[int], Series],
    estimate: Callable[[Series], Interval],
    wanted: float,
    *,
    first: int = 1000,
    most: int = 1_000_000,
) -> Precise:
    """Lengthen one run until `estimate` is precise to a share `wanted` of its value, or `most` is reached.

    An interval narrows with the square root of the length, so each try is as long as the one before says is needed, at
    most four times as long. Stopping at the first precise interval favours runs that look precise by luck:
    coverage is a few percent below nominal for runs that stop early (Law and Kelton, section 9.5.3), hence `first`.

    Args:
        run: the series of a run of so many requests, without its warm-up; longer ones go on where shorter ones ended.
        wanted: above 0.
    """
    length = min(first, most)
    while True:
        found = Precise(estimate(run(length)), wanted, length)
        if found.reached or length >= most:
            return found
        relative = found.interval.relative
        growth = _MARGIN * (relative / wanted) ** 2 if math.isfinite(relative) else _STRIDE
        length = min(most, math.ceil(length * min(max(growth, _MARGIN), _STRIDE)))


def replicate(
    run: Callable[[int], float], wanted: float, *, least: int = 5, most: int = 100, confidence: float = CONFIDENCE
) -> Precise:
    """Repeat independent runs, seeds 0, 1, 2 and on, until their mean is precise to a share `wanted` of its value."""
    values: list[float] = []
    while True:
        values.append(run(len(values)))
        if len(values) < min(least, most):
            continue
        found = Precise(replications(values, confidence), wanted, len(values))
        if found.reached or len(values) >= most:
            return found
