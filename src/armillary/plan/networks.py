"""Networks of queues: open ones by Jackson, closed ones by mean value analysis or by normalising constants.

Shapes: K stations, C classes, N customers of one class. A demand is a request's total service time at a station over
all its visits, in seconds; think time is spent between requests, outside of all stations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from armillary.plan.checks import at_least, invalid, not_negative
from armillary.plan.queueing import MMc

Array = NDArray[np.float64]

_STATES = 2_000_000
"""Populations up to which the exact analysis of several classes is made; beyond, `schweitzer` answers."""


@dataclass(frozen=True)
class JacksonNetwork:
    """Stations with exponential service, Poisson arrivals from outside, and random routes between them.

    J. R. Jackson, "Networks of waiting lines", Operations Research 5(4), 1957: in the long run every station is as if
    it were an M/M/c of its own.

    Args:
        arrivals: from outside, per second [K].
        service_s: mean service [K].
        routing: routing[i][j] is the probability of going from i to j; what is left of a row leaves [K, K].
        servers: of each station; one each where absent.
    """

    arrivals: Sequence[float]
    service_s: Sequence[float]
    routing: Sequence[Sequence[float]]
    servers: Sequence[int] | None = None

    @property
    def stations(self) -> tuple[MMc, ...]:
        """Each station as it would stand alone with the traffic that the network brings it."""
        count = len(self.arrivals)
        routing = np.asarray(self.routing, dtype=np.float64)
        if routing.shape != (count, count) or (routing < 0).any() or (routing.sum(axis=1) > 1 + 1e-9).any():
            raise invalid(
                "routing", f"must be {count} rows of {count} probabilities that sum to at most 1", self.routing
            )
        servers = self.servers if self.servers is not None else [1] * count
        if len(self.service_s) != count or len(servers) != count:
            raise invalid("service_s and servers", f"must be as many as arrivals, {count}", (self.service_s, servers))
        try:
            flows = np.linalg.solve(np.eye(count) - routing.T, np.asarray(self.arrivals, dtype=np.float64))
        except np.linalg.LinAlgError:
            raise invalid("routing", "must let every request leave in the end", self.routing) from None
        return tuple(MMc(float(f), s, c) for f, s, c in zip(flows, self.service_s, servers, strict=True))

    @property
    def stable(self) -> bool:
        return all(station.stable for station in self.stations)

    @property
    def in_system(self) -> float:
        return sum(station.in_system for station in self.stations)

    @property
    def response_s(self) -> float:
        """Mean time from a request's arrival to its leaving the network (Little's law)."""
        total = sum(self.arrivals)
        if not total:
            raise invalid("arrivals", "must be above 0 at one station at least", self.arrivals)
        return self.in_system / total


@dataclass(frozen=True)
class ClosedNetwork:
    """What mean value analysis finds. Arrays of one class have shape [1] and [1, K].

    Attributes:
        throughput: requests per second [C].
        residence_s: time at each station per request, all visits together [C, K].
        queue: requests at each station, those in service included [C, K].
    """

    throughput: Array
    residence_s: Array
    queue: Array

    @property
    def response_s(self) -> Array:
        """Time from the end of one think time to the beginning of the next [C]."""
        return np.asarray(self.residence_s.sum(axis=1))


def mva(demands_s: ArrayLike, population: int | Sequence[int], think_s: float | Sequence[float] = 0.0) -> ClosedNetwork:
    """Exact mean values of a closed network of single servers with think time, for one class or several.

    M. Reiser and S. S. Lavenberg, "Mean-value analysis of closed multichain queuing networks", Journal of the ACM
    27(2), 1980: an arriving request sees the network as it would be without itself. Holds for service in order of
    arrival with exponential times that are the same for all classes at a station, and for processor sharing with any.

    Args:
        demands_s: [K] for one class, [C, K] for several.
        population: customers, one number for each class.
        think_s: mean think time, one for each class, or one for all.
    """
    demands, counts, thinks = _classes(demands_s, population, think_s)
    classes, stations = demands.shape
    if math.prod(n + 1 for n in counts) > _STATES:
        raise invalid("population", f"must have at most {_STATES:,} mixtures of classes (use schweitzer)", population)
    seen: dict[tuple[int, ...], Array] = {}
    throughput, residence = np.zeros(classes), np.zeros((classes, stations))
    queue = np.zeros((classes, stations))
    # In the order of itertools.product every population comes after those with one customer less.
    for mixture in itertools.product(*(range(n + 1) for n in counts)):
        residence = np.zeros((classes, stations))
        throughput = np.zeros(classes)
        for c in range(classes):
            if mixture[c]:
                before = (*mixture[:c], mixture[c] - 1, *mixture[c + 1 :])
                residence[c] = demands[c] * (1 + seen[before])
                throughput[c] = mixture[c] / (thinks[c] + residence[c].sum())
        queue = throughput[:, None] * residence
        seen[mixture] = queue.sum(axis=0)
        if classes == 1 and mixture[0]:
            del seen[(mixture[0] - 1,)]
    return ClosedNetwork(throughput, residence, queue)


def schweitzer(
    demands_s: ArrayLike,
    population: int | Sequence[int],
    think_s: float | Sequence[float] = 0.0,
    tolerance: float = 1e-10,
) -> ClosedNetwork:
    """`mva`, approximately and for any populations: an arriving request sees its own class in proportion.

    P. Schweitzer, "Approximate analysis of multiclass closed networks of queues", 1979; Y. Bard, "Some extensions to
    multiclass queueing network analysis", 1979. Errors of a few percent are usual, most at small populations.
    """
    demands, counts, thinks = _classes(demands_s, population, think_s)
    numbers = np.asarray(counts, dtype=np.float64)[:, None]
    queue = np.broadcast_to(numbers / demands.shape[1], demands.shape).copy()
    own = np.divide(1.0, numbers, out=np.zeros_like(numbers), where=numbers > 0)
    for _ in range(100_000):
        residence = demands * (1 + queue.sum(axis=0) - queue * own)
        throughput = numbers[:, 0] / np.maximum(thinks + residence.sum(axis=1), 1e-300)
        found = throughput[:, None] * residence
        change = float(np.abs(found - queue).max())
        queue = found
        if change <= tolerance * max(1.0, float(numbers.max())):
            break
    return ClosedNetwork(throughput, residence, queue)


def normalising_constants(
    demands_s: Sequence[float], population: int, think_s: float = 0.0, speeds: Sequence[Sequence[float]] | None = None
) -> tuple[float, Array]:
    """(throughput, mean queue [K]) of a closed network of one class whose stations may speed up with their queue.

    J. P. Buzen, "Computational algorithms for closed queueing networks with exponential servers", Communications of the
    ACM 16(9), 1973, in logarithms. `speeds[k][n - 1]` is by how much station k is faster with n present than with one
    (its last value holds beyond); absent: 1 always. A station of c servers has speeds 1, 2, ..., c.
    """
    at_least("population", population, 1)
    not_negative("think_s", think_s)
    given = [[1.0]] * len(demands_s) if speeds is None else speeds
    if len(given) != len(demands_s):
        raise invalid("speeds", f"must be one list for each of {len(demands_s)} stations", speeds)
    terms = [_log_terms(demand, speed, population) for demand, speed in zip(demands_s, given, strict=True)]
    thinking = _log_terms(think_s, list(np.arange(1.0, population + 1)), population)
    everything = _convolved([*terms, thinking])
    queue = np.zeros(len(terms))
    for k, own in enumerate(terms):
        others = _convolved([*terms[:k], *terms[k + 1 :], thinking])
        queue[k] = float(np.arange(population + 1) @ np.exp(own + others[::-1] - everything[population]))
    return math.exp(everything[population - 1] - everything[population]), queue


def _log_terms(demand_s: float, speeds: Sequence[float], population: int) -> Array:
    """log(demand^n / (speed(1) ... speed(n))) for n from 0 to `population`."""
    not_negative("demands_s", demand_s)
    given = np.asarray(speeds, dtype=np.float64)
    if given.ndim != 1 or not given.size or not (given > 0).all():
        raise invalid("speeds", "must be above 0, one at least for each station", speeds)
    speed = np.concatenate([given, np.full(max(0, population - given.size), given[-1])])[:population]
    with np.errstate(divide="ignore"):
        return np.concatenate([[0.0], np.cumsum(np.log(demand_s) - np.log(speed))])


def _convolved(terms: Sequence[Array]) -> Array:
    found = np.full(terms[0].size, -np.inf)
    found[0] = 0.0
    for term in terms:
        found = np.array([np.logaddexp.reduce(found[: n + 1] + term[n::-1]) for n in range(found.size)])
    return found


def _classes(
    demands_s: ArrayLike, population: int | Sequence[int], think_s: float | Sequence[float]
) -> tuple[Array, tuple[int, ...], Array]:
    demands = np.atleast_2d(np.asarray(demands_s, dtype=np.float64))
    counts = (population,) if isinstance(population, int) else tuple(population)
    if (
        demands.ndim != 2
        or demands.shape[0] != len(counts)
        or not (demands >= 0).all()
        or not np.isfinite(demands).all()
    ):
        raise invalid(
            "demands_s", f"must be finite times of 0 or more, one row for each of {len(counts)} classes", demands_s
        )
    for count in counts:
        at_least("population", count, 0)
    thinks = np.asarray(think_s, dtype=np.float64)
    if thinks.shape not in ((), (1,), (len(counts),)) or not (thinks >= 0).all() or not np.isfinite(thinks).all():
        raise invalid("think_s", "must be finite times of 0 or more, one, or one for each class", think_s)
    thinks = np.broadcast_to(thinks, (len(counts),))
    if any(n and z + d.sum() == 0 for n, z, d in zip(counts, thinks, demands, strict=True)):
        raise invalid("demands_s", "must be above 0 somewhere, or think_s must be, or requests take no time", demands_s)
    return demands, counts, thinks
