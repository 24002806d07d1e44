"""A server whose speed depends on how many it serves at once: the batch server of an LLM engine, a birth-death chain.

In state n (requests present) requests arrive at `rate` and leave at mu(n); mu stays at its last value once all slots
are taken, and whoever finds no slot waits in order of arrival. With mu(n) = n / service time up to c slots this is
M/M/c, with a constant mu and endless slots M/M/1 under processor sharing. Rates are per second, times seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from armillary.plan.checks import at_least, invalid, not_negative, positive, share
from armillary.plan.markov import Vector, after_seconds
from armillary.plan.service import quantile

_TAIL = 1e-16
"""Share of the probability beyond which states of an endless queue are left out of sums."""


def birth_death(births: ArrayLike, deaths: ArrayLike) -> Vector:
    """The stationary distribution over n + 1 states, where births[i] leads from state i to i + 1 and deaths[i] back.

    Products of ratios, taken as sums of logarithms, so that thousands of states neither overflow nor vanish.
    """
    up, down = np.asarray(births, dtype=np.float64), np.asarray(deaths, dtype=np.float64)
    if up.shape != down.shape or up.ndim != 1 or not (down > 0).all() or not (up >= 0).all():
        raise invalid("births and deaths", "must be as many, births 0 or more and deaths above 0", (births, deaths))
    with np.errstate(divide="ignore"):
        logs = np.concatenate([[0.0], np.cumsum(np.log(up) - np.log(down))])
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.sum())


def service_rates(step_s: Callable[[int], float], steps: float, slots: int) -> Vector:
    """mu(1) .. mu(slots) of an engine in which a request needs `steps` steps on average, each of which takes
    `step_s(n)` seconds with n requests in it: n requests, each nearer its end by 1/steps every step."""
    positive("steps", steps)
    at_least("slots", slots, 1)
    return np.array([n / (steps * step_s(n)) for n in range(1, slots + 1)])


@dataclass(frozen=True, eq=False)
class BatchServer:
    """M/M/1/K with state-dependent rates.

    Args:
        rate: arrivals per second.
        service_rates: mu(1), mu(2), ... of as many slots as there are.
        capacity: most requests that may be present, waiting ones included; who comes then is lost. None: no limit.
    """

    rate: float
    service_rates: NDArray[np.float64]
    capacity: int | None = None

    def __post_init__(self) -> None:
        not_negative("rate", self.rate)
        rates = np.asarray(self.service_rates, dtype=np.float64)
        if rates.ndim != 1 or not rates.size or not (rates > 0).all() or not np.isfinite(rates).all():
            raise invalid("service_rates", "must be one or more finite rates above 0", self.service_rates)
        object.__setattr__(self, "service_rates", rates)
        if self.capacity is not None:
            at_least("capacity", self.capacity, self.slots)

    @property
    def slots(self) -> int:
        return len(self.service_rates)

    @property
    def stable(self) -> bool:
        """Whether the queue stays finite; with a capacity it always does."""
        return self.capacity is not None or self.rate < self.service_rates[-1]

    @cached_property
    def distribution(self) -> Vector:
        """P(n present), n from 0; where there is no capacity, as far as it matters."""
        if not self.stable:
            raise invalid("rate", f"must be below mu = {self.service_rates[-1]:g} of a full batch", self.rate)
        states = self.capacity
        if states is None:
            # Beyond the slots probabilities fall by the same ratio each.
            ratio = self.rate / self.service_rates[-1]
            states = self.slots + (math.ceil(math.log(_TAIL) / math.log(ratio)) if ratio > 0 else 1)
        deaths = np.concatenate([self.service_rates, np.full(states - self.slots, self.service_rates[-1])])
        return birth_death(np.full(states, self.rate), deaths)

    @property
    def lost(self) -> float:
        """Share of arrivals that find no room."""
        return float(self.distribution[-1]) if self.capacity is not None else 0.0

    @property
    def throughput(self) -> float:
        """Requests that are served, per second."""
        return self.rate * (1 - self.lost) if self.stable else float(self.service_rates[-1])

    @property
    def utilisation(self) -> float:
        """Share of time in which at least one is served."""
        return 1 - float(self.distribution[0]) if self.stable else 1.0

    @property
    def in_system(self) -> float:
        return float(self.distribution @ np.arange(len(self.distribution))) if self.stable else math.inf

    @property
    def running(self) -> float:
        """Mean number in slots."""
        if not self.stable:
            return float(self.slots)
        return float(self.distribution @ np.minimum(np.arange(len(self.distribution)), self.slots))

    @property
    def waiting(self) -> float:
        return max(0.0, self.in_system - self.running)

    @property
    def response_s(self) -> float:
        """Mean time from arrival to departure of those who were not lost (Little's law)."""
        return self.in_system / self.throughput if self.rate else 1 / float(self.service_rates[0])

    @property
    def wait_s(self) -> float:
        """Mean time until a slot is free."""
        return self.waiting / self.throughput if self.rate else 0.0

    @property
    def residence_s(self) -> float:
        """Mean time in a slot."""
        return self.running / self.throughput if self.rate else 1 / float(self.service_rates[0])

    def wait_tail(self, t: float) -> float:
        """P(wait > t) of those who were not lost: who finds n >= slots present waits for n - slots + 1 departures, each
        after an exponential time at the rate of a full batch."""
        from scipy.special import gammaincc

        if not self.stable:
            return 1.0
        if t < 0:
            return 1.0
        seen = self.distribution if self.capacity is None else self.distribution[:-1]
        waits = seen[self.slots :]
        if not waits.size:
            return 0.0
        ahead = np.arange(1, len(waits) + 1)
        return float(waits @ gammaincc(ahead, self.service_rates[-1] * t)) / float(seen.sum())

    def wait_quantile(self, level: float) -> float:
        """The wait that the share `level` does not exceed."""
        share("level", level)
        if not self.stable:
            return math.inf
        if self.wait_tail(0.0) <= 1 - level:
            return 0.0
        return quantile(self.wait_tail, level, 1 / float(self.service_rates[-1]))

    def response_tail(self, t: float) -> float:
        """P(response > t), where all present are served (capacity = slots) and share the server evenly.

        The chain of a marked request and its companions, until the marked one leaves (phase-type).
        """
        if self.capacity != self.slots:
            raise invalid("capacity", "must equal the slots, so that nobody waits, for the tail of the response",
                          self.capacity)  # fmt: skip
        n = self.slots
        generator = np.zeros((n + 1, n + 1))  # state i: i companions; state n: gone
        for i in range(n):
            if i + 1 < n:
                generator[i, i + 1] = self.rate
            own = self.service_rates[i] / (i + 1)
            if i:
                generator[i, i - 1] = own * i
            generator[i, n] = own
        np.fill_diagonal(generator, -generator.sum(axis=1))
        start = np.zeros(n + 1)
        start[:n] = self.distribution[:n] / self.distribution[:n].sum()
        return float(1 - after_seconds(generator, start, t)[n])

    def response_quantile(self, level: float) -> float:
        """The response that the share `level` does not exceed; as `response_tail`."""
        share("level", level)
        return quantile(self.response_tail, level, self.response_s)
