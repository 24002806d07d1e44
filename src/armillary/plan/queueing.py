"""Single queues in closed form: what a simulation of an idealised server must reproduce, and a first estimate.

Times are seconds, rates are per second, loads are dimensionless (arrival rate times service time). Arrivals are
Poisson and service is in order of arrival unless said otherwise. A queue that cannot keep up (`stable` is false) has
infinite waits; it does not raise. Sources: L. Kleinrock, "Queueing Systems" volume 1, 1975 (K); M. Harchol-Balter,
"Performance Modeling and Design of Computer Systems", 2013 (HB); others at their place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from armillary.plan.checks import at_least, not_negative, positive, share
from armillary.plan.service import Complex, Service, quantile, second, tail


def erlang_b(servers: int, load: float) -> float:
    """Share of arrivals lost where each of `servers` serves one at a time and nobody waits (M/G/c/c).

    By the recursion over servers (K 3.6, HB 16.2), each term of which is between 0 and 1: no factorial, no overflow.
    """
    at_least("servers", servers, 0)
    not_negative("load", load)
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = load * blocked / (n + load * blocked)
    return blocked


def erlang_c(servers: int, load: float) -> float:
    """Probability that an arrival must wait in M/M/c; 1 where `load` is at least `servers` (HB 14.3)."""
    at_least("servers", servers, 1)
    if load >= servers:
        return 1.0
    blocked = erlang_b(servers, load)
    return blocked / (1 - load / servers * (1 - blocked))


@dataclass(frozen=True)
class MMc:
    """M/M/c: exponential service of mean `service_s` by `servers` equal servers; with one of them, M/M/1."""

    rate: float
    service_s: float
    servers: int = 1

    def __post_init__(self) -> None:
        not_negative("rate", self.rate)
        positive("service_s", self.service_s)
        at_least("servers", self.servers, 1)

    @property
    def load(self) -> float:
        """Mean number of busy servers, where they keep up."""
        return self.rate * self.service_s

    @property
    def utilisation(self) -> float:
        """Load per server; from 1 on the queue grows without end."""
        return self.load / self.servers

    @property
    def stable(self) -> bool:
        return self.utilisation < 1

    @property
    def wait_probability(self) -> float:
        return erlang_c(self.servers, self.load)

    @property
    def wait_s(self) -> float:
        """Mean wait, those who do not wait included."""
        if not self.stable:
            return math.inf
        return self.wait_probability * self.service_s / (self.servers - self.load)

    @property
    def response_s(self) -> float:
        return self.wait_s + self.service_s

    @property
    def waiting(self) -> float:
        """Mean number that wait."""
        return self.rate * self.wait_s if self.rate else 0.0

    @property
    def in_system(self) -> float:
        """Mean number that wait or are served."""
        return self.waiting + self.load

    def wait_tail(self, t: float) -> float:
        """P(wait > t): those who wait do so for an exponential time (HB 14.4)."""
        return self.wait_probability * math.exp(-self._slack * t) if self.stable else 1.0

    def wait_quantile(self, level: float) -> float:
        """The wait that the share `level` of arrivals does not exceed."""
        share("level", level)
        if not self.stable:
            return math.inf
        delayed = self.wait_probability
        return 0.0 if delayed <= 1 - level else math.log(delayed / (1 - level)) / self._slack

    def response_tail(self, t: float) -> float:
        """P(wait + service > t)."""
        if not self.stable:
            return 1.0
        x = t / self.service_s
        # exp(-x) (1 - exp(-d x)) / d, where d = servers - 1 - load may be 0: one exponential time ends before the other
        # or not. Where d is below 0, the second of them alone grows beyond all numbers.
        d = self.servers - 1 - self.load
        if abs(d * x) < 1.0:
            between = math.exp(-x) * (-math.expm1(-d * x) / d if abs(d * x) > 1e-12 else x)
        else:
            between = (math.exp(-x) - math.exp(-(1 + d) * x)) / d
        return min(1.0, math.exp(-x) + self.wait_probability * between)

    def response_quantile(self, level: float) -> float:
        """The time from arrival to the end of service that the share `level` does not exceed."""
        share("level", level)
        return quantile(self.response_tail, level, self.response_s) if self.stable else math.inf

    @property
    def _slack(self) -> float:
        return (self.servers - self.load) / self.service_s


@dataclass(frozen=True)
class MG1:
    """M/G/1: one server with any distribution of service (Pollaczek and Khinchine; K 5.6, 5.7).

    With `vacation` the server goes away for a time of that distribution whenever nobody waits, and again if still
    nobody waits when it is back: an engine that looks for arrivals only between steps. The wait is then the wait
    without vacations plus what is left of a vacation at a random moment, independent of it (Fuhrmann and Cooper,
    "Stochastic decompositions in the M/G/1 queue with generalized vacations", Operations Research 33(5), 1985).
    """

    rate: float
    service: Service
    vacation: Service | None = None

    def __post_init__(self) -> None:
        not_negative("rate", self.rate)

    @property
    def utilisation(self) -> float:
        return self.rate * self.service.mean_s

    @property
    def stable(self) -> bool:
        return self.utilisation < 1

    @property
    def wait_s(self) -> float:
        """Mean wait."""
        if not self.stable:
            return math.inf
        away = 0.0 if self.vacation is None else second(self.vacation) / (2 * self.vacation.mean_s)
        return self.rate * second(self.service) / (2 * (1 - self.utilisation)) + away

    @property
    def wait_variance(self) -> float:
        """Variance of the wait (Takács; K 5.7)."""
        if not self.stable:
            return math.inf
        slack = 1 - self.utilisation
        own = (self.rate * second(self.service) / (2 * slack)) ** 2 + self.rate * self.service.third / (3 * slack)
        if self.vacation is None:
            return own
        rest = second(self.vacation) / (2 * self.vacation.mean_s)
        return own + self.vacation.third / (3 * self.vacation.mean_s) - rest**2

    @property
    def response_s(self) -> float:
        return self.wait_s + self.service.mean_s

    @property
    def waiting(self) -> float:
        return self.rate * self.wait_s if self.rate else 0.0

    @property
    def in_system(self) -> float:
        return self.waiting + self.utilisation

    def wait_transform(self, s: Complex) -> Complex:
        """E[exp(-s wait)]."""
        found = (1 - self.utilisation) * s / (s - self.rate * (1 - self.service.transform(s)))
        if self.vacation is not None:
            found = found * (1 - self.vacation.transform(s)) / (s * self.vacation.mean_s)
        return np.asarray(found)

    def wait_tail(self, t: float) -> float:
        """P(wait > t)."""
        if not self.stable:
            return 1.0
        if t <= 0:
            return self.utilisation if self.vacation is None else 1.0
        return tail(self.wait_transform, t)

    def wait_quantile(self, level: float) -> float:
        """The wait that the share `level` of arrivals does not exceed."""
        share("level", level)
        if not self.stable:
            return math.inf
        if 1 - level >= self.wait_tail(0.0):
            return 0.0
        return quantile(self.wait_tail, level, self.wait_s)

    def response_tail(self, t: float) -> float:
        """P(wait + service > t)."""
        if not self.stable:
            return 1.0
        if t <= 0:
            return 1.0
        if self.service.scv == 0:  # a jump at the service time, which no inversion reproduces
            return self.wait_tail(t - self.service.mean_s) if t >= self.service.mean_s else 1.0
        return tail(lambda s: np.asarray(self.wait_transform(s) * self.service.transform(s)), t)

    def response_quantile(self, level: float) -> float:
        """The time from arrival to the end of service that the share `level` does not exceed."""
        share("level", level)
        if not self.stable:
            return math.inf
        if self.service.scv == 0:
            return self.service.mean_s + self.wait_quantile(level)
        return quantile(self.response_tail, level, self.response_s)


@dataclass(frozen=True)
class MGc:
    """M/G/c, approximately: the wait of M/M/c times (1 + scv)/2 (Lee and Longton, "Queueing processes associated with
    airline passenger check-in", Operational Research Quarterly 10(1), 1959), and with `arrival_scv`, the squared
    coefficient of variation of the gaps between arrivals, times (arrival_scv + scv)/2 (A. O. Allen, "Probability,
    Statistics and Queueing Theory", 2nd edition, 1990: Allen and Cunneen).

    Exact for M/M/c and for the mean of M/G/1. The approximation was made for busy servers; at light load with
    very uneven service it can be wrong by a third of an already small wait. Percentiles take M/M/c's probability of
    having to wait and an exponential time for those who do.
    """

    rate: float
    service: Service
    servers: int = 1
    arrival_scv: float = 1.0

    def __post_init__(self) -> None:
        not_negative("arrival_scv", self.arrival_scv)
        at_least("servers", self.servers, 1)
        not_negative("rate", self.rate)

    @property
    def markovian(self) -> MMc:
        """M/M/c of the same means."""
        return MMc(self.rate, self.service.mean_s, self.servers)

    @property
    def utilisation(self) -> float:
        return self.markovian.utilisation

    @property
    def stable(self) -> bool:
        return self.utilisation < 1

    @property
    def variability(self) -> float:
        """By which M/M/c's wait is multiplied."""
        return (self.arrival_scv + self.service.scv) / 2

    @property
    def wait_s(self) -> float:
        return self.variability * self.markovian.wait_s if self.stable else math.inf

    @property
    def response_s(self) -> float:
        return self.wait_s + self.service.mean_s

    def wait_quantile(self, level: float) -> float:
        """The wait that the share `level` of arrivals does not exceed, approximately."""
        return self.variability * self.markovian.wait_quantile(level) if self.stable else math.inf


@dataclass(frozen=True)
class ProcessorSharing:
    """M/G/1 whose server divides itself evenly among all who are there (HB 22.2): only the mean service matters."""

    rate: float
    service_s: float

    def __post_init__(self) -> None:
        not_negative("rate", self.rate)
        positive("service_s", self.service_s)

    @property
    def utilisation(self) -> float:
        return self.rate * self.service_s

    @property
    def stable(self) -> bool:
        return self.utilisation < 1

    @property
    def slowdown(self) -> float:
        """Mean response of a request over its service alone; the same for short ones and long ones."""
        return 1 / (1 - self.utilisation) if self.stable else math.inf

    @property
    def response_s(self) -> float:
        return self.service_s * self.slowdown

    def response_of_s(self, service_s: float) -> float:
        """Mean response of a request that alone would take `service_s`."""
        not_negative("service_s", service_s)
        return service_s * self.slowdown if service_s else 0.0

    @property
    def in_system(self) -> float:
        return self.utilisation * self.slowdown

    def in_system_tail(self, n: int) -> float:
        """P(more than `n` are there)."""
        at_least("n", n, 0)
        return self.utilisation ** (n + 1) if self.stable else 1.0
