"""How steps under load lie around the mean of like ones, and factors drawn alike.

Equal steps of a real engine take different times: another thread had the core, a cache was cold. Means say what a
client waits for a whole answer, not how late the latest of a hundred first tokens is. So a profile keeps, beside the
means, how single steps lay around them, and a simulation draws for each step what to multiply its mean with.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import log2
from random import Random
from statistics import fmean, pvariance

from pydantic import BaseModel, ConfigDict, Field, model_validator

FACTORS = 100
"""Factors kept of each band, each the mean of a hundredth of its steps."""
FEWEST = 200
"""Steps of a band, unless there are no more."""
TOGETHER = 32
"""Successive steps whose mean says how long disturbances last."""


class Spread(BaseModel):
    """Factors around a mean step.

    Short steps vary more than long ones, so there are bands of steps by their mean seconds.

    Attributes:
        limits_s: the ends of all bands but the last, which has none; ascending.
        factors: of each band, factors that are equally likely, ascending, with mean 1.
        lasting: for how many steps a deviation lasts on average, so that the seconds of many steps together vary as
            they did.
    """

    model_config = ConfigDict(extra="forbid")

    limits_s: list[float]
    factors: list[list[float]] = Field(min_length=1)
    lasting: float = Field(default=1.0, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Spread:
        if len(self.limits_s) != len(self.factors) - 1 or any(a >= b for a, b in pairwise(self.limits_s)):
            raise ValueError("limits_s must ascend and be one less than the bands of factors")
        if not all(band and min(band) >= 0 and sum(band) > 0 for band in self.factors):
            raise ValueError("factors of a band must be 0 or more, and not all 0")
        return self


class Draws:
    """What to multiply one step after another with: factors of mean 1, by a seed.

    A deviation lasts a geometric number of steps, then another is drawn; through it, a step's place among the factors
    of its band stays the same.
    """

    def __init__(self, spread: Spread, seed: int | str) -> None:
        self._random = Random(seed).random
        self._limits = spread.limits_s
        # What was rounded for a file has a mean of almost 1.
        self._bands = [[factor / fmean(band) for factor in band] for band in spread.factors]
        self._new = 1.0 / spread.lasting
        self._place = self._random()

    def __call__(self, seconds: float) -> float:
        """The factor of the next step, which takes so many seconds on average."""
        if self._random() < self._new:
            self._place = self._random()
        band = self._bands[bisect_right(self._limits, seconds)]
        return band[int(self._place * len(band))]


def spread_of(ratios: Sequence[tuple[float, float]]) -> Spread | None:
    """The spread of steps, given in their order as (mean seconds of like ones, its own share of that).

    None where there are too few to tell.
    """
    if len(ratios) < FEWEST:
        return None
    bands: list[tuple[float, list[float]]] = []
    octaves: dict[int, list[float]] = {}
    for mean, ratio in ratios:
        octaves.setdefault(round(log2(mean)), []).append(ratio)
    for octave in sorted(octaves):
        limit = 2.0 ** (octave + 0.5)
        if bands and len(bands[-1][1]) < FEWEST:
            bands[-1] = (limit, bands[-1][1] + octaves[octave])
        else:
            bands.append((limit, octaves[octave]))
    if len(bands) > 1 and len(bands[-1][1]) < FEWEST:
        few = bands.pop()
        bands[-1] = (few[0], bands[-1][1] + few[1])
    return Spread(
        limits_s=[round(limit, 8) for limit, _ in bands[:-1]],
        factors=[_condensed(band) for _, band in bands],
        lasting=_lasting([ratio for _, ratio in ratios]),
    )


def _condensed(ratios: list[float]) -> list[float]:
    """Means of equal parts of them, from the least to the greatest, over the mean of all."""
    ordered = sorted(ratios)
    count = min(FACTORS, len(ordered))
    edges = [place * len(ordered) // count for place in range(count + 1)]
    means = [fmean(ordered[low:high]) for low, high in pairwise(edges)]
    whole = fmean(means)
    return [round(mean / whole, 4) for mean in means]


def _lasting(ratios: list[float]) -> float:
    """Steps for which a deviation lasts: means of successive steps vary more than those of independent ones would, by
    (1 + r) / (1 - r) where each deviation goes on with probability r."""
    means = [fmean(ratios[i : i + TOGETHER]) for i in range(0, len(ratios) - TOGETHER + 1, TOGETHER)]
    alone = pvariance(ratios)
    if alone <= 0 or len(means) < 2:
        return 1.0
    more = TOGETHER * pvariance(means) / alone
    return round(min(max(1.0, (more + 1.0) / 2.0), TOGETHER / 2), 3)
