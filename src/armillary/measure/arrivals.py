"""When requests arrive in an open loop: Poisson, gamma with a coefficient of variation, evenly, or all at once."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from armillary.errors import ArmillaryError, Code

SHAPES = ("poisson", "gamma", "constant")


def gaps(shape: str, rate: float, cv: float, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """`count` independent gaps between arrivals, in seconds.

    Args:
        shape: `poisson` (exponential gaps), `gamma` (gaps with coefficient of variation `cv`: above 1 is
            burstier than Poisson, below 1 more even) or `constant`.
        rate: arrivals per second, above 0; infinite means all at once.
        cv: standard deviation of a gap over its mean, for `gamma`.
    """
    if shape not in SHAPES:
        raise ArmillaryError(Code.INVALID_REQUEST, f"arrivals must be one of {', '.join(SHAPES)}, given {shape!r}")
    if not rate > 0:
        raise ArmillaryError(Code.INVALID_REQUEST, f"rate must be above 0 requests/s, given {rate}", param="rate")
    if math.isinf(rate):
        return np.zeros(count)
    mean = 1.0 / rate
    if shape == "constant":
        return np.full(count, mean)
    if shape == "poisson":
        return rng.exponential(mean, size=count)
    if not (cv > 0 and math.isfinite(cv)):
        raise ArmillaryError(Code.INVALID_REQUEST, f"cv must be a number above 0, given {cv}", param="cv")
    alpha = 1.0 / cv**2
    return rng.gamma(alpha, mean / alpha, size=count)


def arrival_times(shape: str, rate: float, cv: float, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """`count` arrival times in seconds from the start; the first is one gap after it (0 where all come at once)."""
    return np.cumsum(gaps(shape, rate, cv, count, rng))
