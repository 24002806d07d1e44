"""When requests arrive in an open loop, written as one short word.

    poisson                  independent exponential gaps
    constant                 even gaps
    gamma:CV                 independent gaps with coefficient of variation CV: above 1 is burstier than Poisson
    mmpp:BURST,SHARE,S       Poisson at two rates in turns: bursts, at BURST times the calm rate, take the share
                             SHARE of the time and last S seconds on average (a Markov-modulated Poisson process)
    diurnal:SWING[,S]        Poisson whose rate swings by the share SWING about its mean, as a sine with a period of S
                             seconds (a day)
    profile:FILE[,S]         Poisson whose rate follows the numbers in FILE, each for S seconds (an hour), repeated

Every process has the mean rate it is given. Rates that change are followed by a change of time: the n-th arrival of a
process of rate 1 stands where the integral of the rate reaches it (Çınlar 1975). So one seed gives the same
arrivals at every rate, only closer together: what two rates are compared by differs in nothing else. Where the rate
changes by itself (mmpp, diurnal, profile), it changes at the same moments at every mean rate, since its seconds are
seconds of the world; then it is the integral of the rate at which the same arrivals stand, and not the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from armillary.errors import ArmillaryError, Code

Times = NDArray[np.float64]

_DAY_S = 86400.0
_HOUR_S = 3600.0
_BISECTIONS = 60
_LEAST_CV, _MOST_CV = 0.001, 100.0
"""Beyond, gaps are constant, or the whole of a workload comes at once: by numbers, or by luck."""
MOST_CHANGES = 10_000_000
"""Of a rate that takes turns."""


class Arrivals(Protocol):
    """A stationary or periodic arrival process."""

    @property
    def cycle_s(self) -> float:
        """Seconds in which its rate changes and comes back, on average; 0 where it does not change."""
        ...

    @property
    def peak(self) -> float:
        """Its highest rate, as a factor of the mean."""
        ...

    def times(self, count: int, rate: float, rng: np.random.Generator) -> Times:
        """The first `count` arrivals at a mean rate of `rate` per second, in seconds from the start, in order."""
        ...


@dataclass(frozen=True)
class Poisson:
    """Independent exponential gaps."""

    cycle_s: ClassVar[float] = 0.0
    peak: ClassVar[float] = 1.0

    def times(self, count: int, rate: float, rng: np.random.Generator) -> Times:
        return np.cumsum(rng.exponential(size=count)) / rate


@dataclass(frozen=True)
class Constant:
    """Even gaps."""

    cycle_s: ClassVar[float] = 0.0
    peak: ClassVar[float] = 1.0

    def times(self, count: int, rate: float, rng: np.random.Generator) -> Times:
        return np.arange(1, count + 1) / rate


@dataclass(frozen=True)
class Gamma:
    """Independent gamma gaps with the given coefficient of variation."""

    cv: float
    cycle_s: ClassVar[float] = 0.0
    peak: ClassVar[float] = 1.0

    def times(self, count: int, rate: float, rng: np.random.Generator) -> Times:
        shape = 1.0 / self.cv**2
        return np.cumsum(rng.gamma(shape, 1.0 / shape, size=count)) / rate


@dataclass(frozen=True)
class Mmpp:
    """Two rates in turns, each for an exponential time; it begins in its long-run state."""

    burst: float
    share: float
    seconds: float

    @property
    def cycle_s(self) -> float:
        return self.seconds / self.share if self.burst > 1 else 0.0

    @property
    def peak(self) -> float:
        return self.burst / (1 - self.share + self.share * self.burst)

    def times(self, count: int, rate: float, rng: np.random.Generator) -> Times:
        if count / rate > MOST_CHANGES * self.seconds / self.share:
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                f"mmpp must change its rate at most {MOST_CHANGES:,} times, given bursts of {self.seconds:g} s for "
                f"{count / rate:.3g} s",
                param="arrivals",
            )
        calm = rate / (1 - self.share + self.share * self.burst)
        (turns,) = rng.spawn(1)  # so that the rate takes turns alike however many requests are drawn
        wanted = np.cumsum(rng.exponential(size=count))
        stays = (self.seconds * (1 - self.share) / self.share, self.seconds)
        rates = (calm, calm * self.burst)
        state = int(turns.random() < self.share)
        when, reached = [np.zeros(1)], [np.zeros(1)]
        while reached[-1][-1] < wanted[-1]:
            # States alternate, so a round holds as many of both.
            spans = np.tile([stays[state], stays[1 - state]], 512) * turns.exponential(size=1024)
            when.append(when[-1][-1] + np.cumsum(spans))
            reached.append(reached[-1][-1] + np.cumsum(spans * np.tile([rates[state], rates[1 - state]], 512)))
        return np.interp(wanted, np.concatenate(reached), np.concatenate(when))


@dataclass(frozen=True)
class Diurnal:
    """A rate that swings as a sine about its mean."""

    swing: float
    period: float = _DAY_S

    @property
    def cycle_s(self) -> float:
        return self.period if self.swing else 0.0

    @property
    def peak(self) -> float:
        return 1 + self.swing

    def times(self, count: int, rate: float, rng: np.random.Generator) -> Times:
        turn = 2 * math.pi / self.period

        def integral(when: Times) -> Times:
            found: Times = when + self.swing / turn * (1 - np.cos(turn * when))
            return found

        wanted = np.cumsum(rng.exponential(size=count)) / rate
        # The integral runs ahead of time by at most this.
        return _inverse(integral, wanted, wanted - 2 * self.swing / turn, wanted)


@dataclass(frozen=True)
class Profile:
    """Rates in proportion to `weights`, each for `slot` seconds, again and again."""

    weights: tuple[float, ...]
    slot: float = _HOUR_S

    @property
    def cycle_s(self) -> float:
        return self.slot * len(self.weights) if min(self.weights) < max(self.weights) else 0.0

    @property
    def peak(self) -> float:
        return max(self.weights) * len(self.weights) / sum(self.weights)

    def times(self, count: int, rate: float, rng: np.random.Generator) -> Times:
        period = self.slot * len(self.weights)
        upto = np.concatenate([[0.0], np.cumsum(self.weights)])
        rounds, rest = np.divmod(np.cumsum(rng.exponential(size=count)) / (rate * period), 1.0)
        times: Times = period * rounds + np.interp(rest, upto / upto[-1], self.slot * np.arange(len(upto)))
        return times


def _inverse(integral: Callable[[Times], Times], wanted: Times, low: Times, high: Times) -> Times:
    """Where a growing function reaches `wanted`, by bisection between `low` and `high`."""
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        below = integral(middle) < wanted
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.maximum(high, 0.0)


def parse_arrivals(text: str) -> Arrivals:
    """The process that `text` describes (see the module's docstring)."""
    kind, _, rest = text.strip().partition(":")
    kind = kind.lower()
    if kind == "profile":
        name, _, slot = rest.partition(",")
        weights = _weights(name) if name else ()
        numbers = _numbers(slot) if slot else [_HOUR_S]
        if weights and numbers is not None and len(numbers) == 1 and numbers[0] > 0:
            return Profile(weights, numbers[0])
    else:
        numbers = _numbers(rest) if rest else []
        made = None if numbers is None else _from_numbers(kind, numbers)
        if made is not None:
            return made
    raise ArmillaryError(
        Code.INVALID_REQUEST,
        f"arrivals must be poisson, constant, gamma:CV ({_LEAST_CV:g} <= CV <= {_MOST_CV:g}), "
        "mmpp:BURST,SHARE,SECONDS (BURST >= 1, 0 < SHARE < 1), "
        f"diurnal:SWING[,SECONDS] (0 <= SWING <= 1) or profile:FILE[,SECONDS], given {text!r}",
        param="arrivals",
    )


def _numbers(text: str) -> list[float] | None:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None


def _from_numbers(kind: str, numbers: list[float]) -> Arrivals | None:
    match kind, numbers:
        case "poisson", []:
            return Poisson()
        case "constant", []:
            return Constant()
        case "gamma", [cv] if _LEAST_CV <= cv <= _MOST_CV:
            return Gamma(cv)
        case "mmpp", [burst, share, seconds] if burst >= 1 and 0 < share < 1 and seconds > 0:
            return Mmpp(burst, share, seconds)
        case "diurnal", [swing] if 0 <= swing <= 1:
            return Diurnal(swing)
        case "diurnal", [swing, period] if 0 <= swing <= 1 and period > 0:
            return Diurnal(swing, period)
    return None


def _weights(name: str) -> tuple[float, ...]:
    try:
        found = _numbers(",".join(Path(name).read_text(encoding="utf-8").replace(",", " ").split()))
    except (OSError, UnicodeDecodeError) as error:
        raise ArmillaryError(
            Code.NOT_FOUND, f"a profile must be a readable file of numbers, given {name!r}, so: {error}", "arrivals"
        ) from error
    if found is None or min(found) < 0 or not sum(found) > 0:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"a profile must be numbers of at least 0 that are not all 0, given {name!r}",
            param="arrivals",
        )
    return tuple(found)
