"""The highest rate at which something holds, where many limits are asked of the same runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

R = TypeVar("R")


class Rates(Generic[R]):
    """Runs at rates that lie on one scale, each made when it is first asked for and kept.

    Args:
        run: makes the run at a rate, in requests per second.
        top: the highest rate of the scale, at which nothing holds.
        octaves: how far the scale reaches down.
        per_octave: rates of an octave; neighbours are the resolution of every answer.
    """

    def __init__(self, run: Callable[[float], R], top: float, octaves: int = 5, per_octave: int = 4) -> None:
        self._run = run
        self.rates = [top * 2.0 ** (-place / per_octave) for place in range(octaves * per_octave + 1)][::-1]
        self._kept: dict[int, R] = {}

    def capacity(self, holds: Callable[[R], bool]) -> float:
        """The highest rate at which it holds, taken to hold at all lower ones; 0 where it holds at none."""
        low, high = -1, len(self.rates)
        while high - low > 1:
            middle = (low + high) // 2
            if middle not in self._kept:
                self._kept[middle] = self._run(self.rates[middle])
            if holds(self._kept[middle]):
                low = middle
            else:
                high = middle
        if high == len(self.rates):
            raise ValueError(f"nothing may hold at the highest rate, given {self.rates[-1]:g} requests per second")
        return self.rates[low] if low >= 0 else 0.0


def lognormal(median: float, p90: float, limit: int) -> str:
    """The lengths, as a workload says them, of a lognormal distribution with this median and 90th percentile."""
    sigma = np.log(p90 / median) / 1.2815515594
    mean, cv = median * np.exp(sigma**2 / 2), np.sqrt(np.expm1(sigma**2))
    return f"lognormal:{mean:.1f},{cv:.3f},{limit}"
