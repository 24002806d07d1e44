"""How steps under load lie around the mean of like ones, and factors drawn alike.

Equal steps of a real engine take different times: another thread had the core, a cache was cold. Means say what a
client waits for a whole answer, not how late the latest of a hundred first tokens is. So a profile keeps, beside the
means, how single steps lay around them, and a simulation draws for each step what to multiply its mean with.

What slows one step often slows those after it as well, so that most answers take less than the mean of all and a few
take much more. How far steps agree is therefore kept, too, by the time that lies between them, from a millisecond to a
second: steps of whatever length, and those of about the same length, which agree more. By time and not by how many
steps lie between them: a hundred short ones are over before ten long ones are. The slowest hundredth, which may take
twenty times as long as the mean, comes by itself, whatever the steps before it took.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import erf, inf, log2, sqrt
from random import Random
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FACTORS = 1000
"""Factors kept of each band at most, each the mean of as many of its steps: the thousandth that takes longest may take
a hundred times as long as others."""
FEWEST = 200
"""Steps of a band, unless there are no more."""
ALONE = 100
"""One factor of so many, the greatest, comes by itself."""
LASTING = (0.001, 0.004, 0.016, 0.064, 0.256, 1.024)
"""Seconds of steps for which parts of a deviation last on average."""
LAGS = (*range(1, 5), *(steps * 2**octave for octave in range(1, 11) for steps in (3, 4)))
"""How many steps later it is seen how far steps agree."""
TOLD = 0.2
"""Less than this does a part agree with itself from one step to the next that cannot be told from chance."""
NORMAL = [NormalDist().inv_cdf((place + 0.5) / 4096) for place in range(4096)]
"""Normal deviates that are equally likely."""


_Seen = tuple["NDArray[np.float64]", float, int]
"""Of pairs of steps: how far each part agrees with itself between them, their mean product, and how many there are."""
_Shares = Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=len(LASTING), max_length=len(LASTING))]


class Spread(BaseModel):
    """Factors around a mean step.

    Short steps vary more than long ones, so there are bands of steps by their mean seconds. A step's place among the
    factors of its band, but for the one in `ALONE`, is told by a normal deviate.

    Attributes:
        limits_s: the ends of all bands but the last, which has none; ascending.
        factors: of each band, factors that are equally likely, ascending, with mean 1.
        common: parts of the deviates' variance that last as many seconds as `LASTING` says and that all bands share.
        own: parts that last as long, which each band has for itself. What is left of the variance is each step's own.
    """

    model_config = ConfigDict(extra="forbid")

    limits_s: list[float]
    factors: list[list[float]] = Field(min_length=1)
    common: _Shares = [0.0] * len(LASTING)
    own: _Shares = [0.0] * len(LASTING)

    @model_validator(mode="after")
    def _fits(self) -> Spread:
        if len(self.limits_s) != len(self.factors) - 1 or any(a >= b for a, b in pairwise(self.limits_s)):
            raise ValueError("limits_s must ascend and be one less than the bands of factors")
        if not all(band and min(band) >= 0 and sum(band) > 0 for band in self.factors):
            raise ValueError("factors of a band must be 0 or more, and not all 0")
        if sum(self.common) + sum(self.own) > 1.0:
            raise ValueError(f"common and own must be at most 1 together, given {self.common} and {self.own}")
        return self

    def agreement(self, later: int, seconds: float) -> float:
        """How far a step's place agrees with that of one of its band so many steps later, each of which takes so many
        seconds: the deviates' correlation."""
        both = [common + own for common, own in zip(self.common, self.own, strict=True)]
        return sum(share * (lasts / (lasts + seconds)) ** later for share, lasts in zip(both, LASTING, strict=True))


class Draws:
    """What to multiply one step after another with: factors of mean 1, by a seed.

    Each part of a normal deviate ends with a step of s seconds by the chance s / (s + t), where t is what it lasts on
    average; then another is drawn.
    """

    def __init__(self, spread: Spread, seed: int | str) -> None:
        self._random = Random(seed).random
        self._limits = spread.limits_s
        # What was rounded for a file has a mean of almost 1.
        self._bands = [[factor / fmean(band) for factor in band] for band in spread.factors]
        # Of the sums that `erf` is asked of, one for each band.
        self._rest = sqrt(max(0.0, 0.5 * (1.0 - sum(spread.common) - sum(spread.own))))
        widths = [[sqrt(0.5 * share) for share in shares] for shares in (spread.common, spread.own)]
        self._parts = list(zip(*widths, strict=True))
        self._common = [0.0] * len(LASTING)
        self._own = [[0.0] * len(LASTING) for _ in self._bands]
        self._sums = [0.0] * len(self._bands)
        self._end(0.0, 1.0)
        self._lasts = LASTING[0] if any(map(any, widths)) else inf

    def __call__(self, seconds: float) -> float:
        """The factor of the next step, which takes so many seconds on average."""
        random = self._random
        chance = random()
        if chance * (seconds + self._lasts) < seconds:
            self._end(chance, seconds)
        which = bisect_right(self._limits, seconds)
        band = self._bands[which]
        chosen = int(random() * len(band))
        alike = len(band) - len(band) // ALONE
        if chosen >= alike:
            return band[chosen]
        place = 0.5 + 0.5 * erf(self._sums[which] + self._rest * NORMAL[int(random() * len(NORMAL))])
        return band[min(int(place * alike), alike - 1)]

    def _end(self, chance: float, seconds: float) -> None:
        """Draw anew what ends. With a part end those that last less long, which are independent of it all the same."""
        for part, (common, own) in enumerate(self._parts):
            if chance * (seconds + LASTING[part]) >= seconds:
                break
            self._common[part] = common * self._normal()
            for parts in self._own:
                parts[part] = own * self._normal()
        shared = sum(self._common)
        self._sums = [shared + sum(parts) for parts in self._own]

    def _normal(self) -> float:
        return NORMAL[int(self._random() * len(NORMAL))]


def spread_of(ratios: Sequence[tuple[float, float]]) -> Spread | None:
    """The spread of steps, given in their order as (mean seconds of like ones, its own share of that).

    None where there are too few to tell.
    """
    if len(ratios) < FEWEST:
        return None
    import numpy as np
    from scipy.stats import rankdata

    bands: list[tuple[float, list[int]]] = []
    octaves: dict[int, list[int]] = {}
    for step, (mean, _) in enumerate(ratios):
        octaves.setdefault(round(log2(mean)), []).append(step)
    for octave in sorted(octaves):
        limit = 2.0 ** (octave + 0.5)
        if bands and len(bands[-1][1]) < FEWEST:
            bands[-1] = (limit, bands[-1][1] + octaves[octave])
        else:
            bands.append((limit, octaves[octave]))
    if len(bands) > 1 and len(bands[-1][1]) < FEWEST:
        few = bands.pop()
        bands[-1] = (few[0], bands[-1][1] + few[1])
    deviates, bands_of = np.zeros(len(ratios)), np.zeros(len(ratios), dtype=np.int64)
    factors = []
    for number, (_, steps) in enumerate(bands):
        own = [ratios[step][1] for step in steps]
        alike = len(own) - len(own) // ALONE
        places = (rankdata(own) - 0.5) * (len(NORMAL) / alike)
        deviates[steps] = np.where(places < len(NORMAL), np.array(NORMAL)[places.astype(int) % len(NORMAL)], np.nan)
        bands_of[steps] = number
        factors.append(_condensed(sorted(own)))
    common, shares = _parts(deviates, bands_of, np.array([mean for mean, _ in ratios]))
    limits = [round(limit, 8) for limit, _ in bands[:-1]]
    return Spread(limits_s=limits, factors=factors, common=common, own=shares)


def _condensed(ordered: list[float]) -> list[float]:
    """Means of equal parts of them, which ascend, over the mean of all."""
    count = min(FACTORS, len(ordered))
    edges = [place * len(ordered) // count for place in range(count + 1)]
    means = [fmean(ordered[low:high]) for low, high in pairwise(edges)]
    whole = fmean(means)
    return [round(mean / whole, 4) for mean in means]


def _parts(
    deviates: NDArray[np.float64], bands: NDArray[np.int64], seconds: NDArray[np.float64]
) -> tuple[list[float], list[float]]:
    """What of the variance of normal deviates lasts how long, for all and for those of each band.

    A part that lasts t agrees with itself after steps of s seconds each by the product of their t / (s + t). Steps of
    different bands agree by what all share, those of one band also by its own.

    Args:
        deviates: [steps], in their order; not a number of those that come by themselves.
        bands: [steps], the number of each one's band.
        seconds: [steps], the mean of like ones.
    """
    import numpy as np

    if np.nanmin(deviates) == np.nanmax(deviates):
        return [0.0] * len(LASTING), [0.0] * len(LASTING)
    deviates = deviates / np.sqrt(np.nanmean(deviates**2))
    lasts = np.array(LASTING)
    since = np.cumsum(np.log(lasts / (lasts + seconds[:, None])), axis=0)
    alike: list[_Seen] = []
    apart: list[_Seen] = []
    for lag in [lag for lag in LAGS if lag < len(deviates)]:
        agree, same = deviates[:-lag] * deviates[lag:], bands[:-lag] == bands[lag:]
        parts = np.exp(since[lag:] - since[:-lag])
        told = ~np.isnan(agree)
        for found, kind in ((alike, told & same), (apart, told & ~same)):
            for band in range(int(bands.max()) + 1):  # of which some are over soon, some not
                chosen = kind & (bands[lag:] == band)
                if chosen.any():
                    found.append((parts[chosen].mean(axis=0), float(agree[chosen].mean()), int(chosen.sum())))
    common = _fitted(apart, [0.0] * len(LASTING))
    own = _fitted(alike, common)
    # What is rounded must not be more than all.
    return [round(share * 0.999, 4) for share in common], [round(share * 0.999, 4) for share in own]


def _fitted(seen: Sequence[_Seen], known: Sequence[float]) -> list[float]:
    """Shares of the parts by non-negative least squares, from how far pairs agree, beside those that are known: no more
    than all, and nothing of a part that is over before the next step is."""
    import numpy as np
    from scipy.optimize import nnls

    if not seen:
        return [0.0] * len(LASTING)
    parts, agree, pairs = (np.array(column, dtype=np.float64) for column in zip(*seen, strict=True))
    weights = np.sqrt(pairs)
    rows = np.where(parts.max(axis=0) < TOLD, 0.0, parts) * weights[:, None]
    wanted = (agree - parts @ np.array(known)) * weights
    found, room = nnls(rows, wanted)[0], max(0.0, 1.0 - sum(known))
    if found.sum() > room:
        bound = 1e3 * np.abs(rows).sum()  # outweighs whatever was seen
        found = nnls(np.vstack([rows, np.full(len(LASTING), bound)]), np.append(wanted, bound * room))[0]
        found = np.where(rows.any(axis=0), found, 0.0)
        found *= min(1.0, room / max(found.sum(), 1e-12))
    return [float(share) for share in found]
