"""How long one service takes, as a distribution with moments and a Laplace transform; and the way back from transforms.

The waiting times of queues with general service are known as transforms only. `tail` turns one into a probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from armillary.plan.checks import invalid, not_negative, positive, share

Complex = NDArray[np.complex128]
Transform = Callable[[Complex], Complex]


class Service(Protocol):
    """A distribution of positive times. Seconds."""

    @property
    def mean_s(self) -> float: ...

    @property
    def scv(self) -> float:
        """Squared coefficient of variation: variance over squared mean. 0: constant, 1: exponential."""
        ...

    @property
    def third(self) -> float:
        """Third moment, seconds cubed."""
        ...

    def transform(self, s: Complex) -> Complex:
        """E[exp(-s T)], element by element."""
        ...


@dataclass(frozen=True)
class Gamma:
    """Gamma distributed with this mean and squared coefficient of variation; 0 makes it constant, 1 exponential."""

    mean_s: float
    scv: float = 1.0

    def __post_init__(self) -> None:
        positive("mean_s", self.mean_s)
        not_negative("scv", self.scv)

    @property
    def third(self) -> float:
        return self.mean_s**3 * (1 + self.scv) * (1 + 2 * self.scv)

    def transform(self, s: Complex) -> Complex:
        if self.scv == 0:
            return np.asarray(np.exp(-s * self.mean_s))
        return np.asarray(np.exp(-np.log1p(s * self.mean_s * self.scv) / self.scv))


class Measured:
    """The distribution of measured times, each as likely as any other."""

    def __init__(self, times_s: Sequence[float] | NDArray[np.float64]) -> None:
        times = np.asarray(times_s, dtype=np.float64)
        if not times.size or not np.all(np.isfinite(times)) or times.min() < 0 or not times.any():
            raise invalid("times_s", "must hold finite times of 0 or more, not all of them 0", times_s)
        # Equal times are taken together, so that a transform costs as many terms as there are different ones.
        self._times, counts = np.unique(times, return_counts=True)
        self._weights = counts / times.size
        self.mean_s = float(self._weights @ self._times)
        self.scv = float(self._weights @ (self._times - self.mean_s) ** 2) / self.mean_s**2
        self.third = float(self._weights @ self._times**3)

    def transform(self, s: Complex) -> Complex:
        return np.asarray(np.exp(-np.multiply.outer(s, self._times)) @ self._weights)


def second(service: Service) -> float:
    """Second moment, seconds squared."""
    return service.mean_s**2 * (1 + service.scv)


_TERMS, _AVERAGED, _A = 38, 11, 18.4
"""Of the Euler method: partial sums 38 to 49 are averaged; the error of discretisation is about exp(-18.4) = 1e-8."""
_BINOMIAL = np.array([math.comb(_AVERAGED, k) for k in range(_AVERAGED + 1)]) / 2.0**_AVERAGED


def tail(transform: Transform, t: float) -> float:
    """P(T > t) for t > 0, where `transform` is E[exp(-s T)].

    Abate and Whitt, "Numerical inversion of Laplace transforms of probability distributions", ORSA Journal on Computing
    7(1), 1995, algorithm EULER, on the transform (1 - E[exp(-s T)]) / s of the tail. Good to about 1e-7 where the tail
    is smooth and 1e-4 near a corner, as constant times have at their multiples; a jump is taken in the middle.
    """
    k = np.arange(_TERMS + _AVERAGED + 1)
    s: Complex = ((_A + 2j * math.pi * k) / (2 * t)).astype(np.complex128)
    terms = np.real((1 - transform(s)) / s) * np.where(k % 2, -1.0, 1.0)
    terms[0] /= 2
    sums = np.cumsum(terms)[_TERMS:]
    return min(1.0, max(0.0, float(math.exp(_A / 2) / t * (_BINOMIAL @ sums))))


def quantile(survives: Callable[[float], float], level: float, scale: float) -> float:
    """The t at which a falling `survives(t)` passes 1 - `level`, to nine digits; 0 where it begins below that.

    Args:
        scale: a typical t, where the search begins. Above 0.
    """
    share("level", level)
    target = 1 - level
    low, high = 0.0, scale
    while survives(high) > target:
        low, high = high, 2 * high
    while high - low > 1e-9 * high and high > 1e-12 * scale:
        middle = (low + high) / 2
        if survives(middle) > target:
            low = middle
        else:
            high = middle
    return high if high > 1e-12 * scale else 0.0
