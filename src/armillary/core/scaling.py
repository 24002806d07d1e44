"""How many replicas there should be: policies that look at totals, and a brake for all of them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Protocol

from armillary.errors import ArmillaryError, Code


@dataclass(frozen=True, slots=True)
class Sight:
    """What a scaler is shown, once a period.

    Attributes:
        now: seconds.
        period_s: seconds since it was last shown anything.
        arrived: requests that came in this period.
        finished: requests that ended in this period.
        late: of those, how many missed their service level.
        outstanding: requests that have not ended.
        replicas: that are up or starting.
    """

    now: float
    period_s: float
    arrived: int
    finished: int
    late: int
    outstanding: int
    replicas: int


class Scaler(Protocol):
    """Says how many replicas are wanted; who asks keeps the answer within bounds (`Brake`)."""

    def wanted(self, sight: Sight) -> int: ...


class ByQueue:
    """So many that each has at most `per_replica` requests that have not ended: the rule of most autoscalers.

    Args:
        per_replica: what one replica handles at the service level.
    """

    def __init__(self, per_replica: float) -> None:
        self._per_replica = _above_zero("per_replica", per_replica)

    def wanted(self, sight: Sight) -> int:
        return ceil(sight.outstanding / self._per_replica)


class BySlo:
    """More where more than `most_late` of what finished was late; fewer where each of one replica less would still have
    no more to do than each had in the worst period that was on time.

    Args:
        most_late: share of requests that may miss their service level.
        step: share by which the number grows at a time.
    """

    def __init__(self, most_late: float = 0.05, step: float = 0.25) -> None:
        if not 0 <= most_late < 1:
            raise _invalid(f"most_late must be from 0 to below 1, given {most_late}", "most_late")
        self._most_late = most_late
        self._step = _above_zero("step", step)
        self._borne = 0.0
        """Outstanding requests a replica, the most that was ever seen without lateness."""

    def wanted(self, sight: Sight) -> int:
        if sight.late > self._most_late * sight.finished:
            # What was borne is now known to be too much, or takes a while to work off.
            self._borne = min(self._borne, 0.9 * sight.outstanding / max(1, sight.replicas))
            return sight.replicas + max(1, ceil(self._step * sight.replicas))
        self._borne = max(self._borne, sight.outstanding / max(1, sight.replicas))
        fewer = sight.replicas - 1
        return fewer if fewer > 0 and sight.outstanding <= 0.8 * self._borne * fewer else sight.replicas


class ByForecast:
    """As many as the arrivals will need that are expected when a replica started now is ready.

    The rate is forecast by Holt's linear smoothing (level and trend), whose error's spread is added as a margin:
    a forecast that has been wrong asks for more. C. C. Holt, "Forecasting seasonals and trends by exponentially
    weighted moving averages", 1957.

    Args:
        rate_per_replica: requests a second that one replica handles at the service level.
        ahead_s: seconds from the decision to a ready replica.
        memory_s: seconds over which what was seen loses about two thirds of its weight.
        margin: standard deviations of the forecast's error on top.
    """

    def __init__(self, rate_per_replica: float, ahead_s: float, memory_s: float = 120.0, margin: float = 1.0) -> None:
        self._rate_per_replica = _above_zero("rate_per_replica", rate_per_replica)
        self._ahead_s = ahead_s
        self._memory_s = _above_zero("memory_s", memory_s)
        self._margin = margin
        self._level: float | None = None
        self._trend = 0.0
        self._variance = 0.0

    def wanted(self, sight: Sight) -> int:
        rate = sight.arrived / sight.period_s
        weight = min(1.0, sight.period_s / self._memory_s)
        if self._level is None:
            self._level = rate
        else:
            expected = self._level + self._trend * sight.period_s
            error = rate - expected
            self._variance += weight * (error * error - self._variance)
            level = expected + weight * error
            self._trend += weight * ((level - self._level) / sight.period_s - self._trend)
            self._level = level
        coming = self._level + self._trend * self._ahead_s + self._margin * sqrt(self._variance)
        return ceil(max(0.0, coming) / self._rate_per_replica)


class Brake:
    """Keeps a scaler within bounds, lets it grow at once, and shrink only to the most that it wanted of late.

    Args:
        least, most: replicas.
        calm_s: seconds for which fewer must have been wanted before there are fewer.
    """

    def __init__(self, scaler: Scaler, least: int, most: int, calm_s: float) -> None:
        if not 1 <= least <= most:
            raise _invalid(f"replicas must be from at least 1 to at least as many, given {least} to {most}", "replicas")
        if not calm_s >= 0:
            raise _invalid(f"calm_s must be 0 or more, given {calm_s}", "calm_s")
        self._scaler = scaler
        self._least, self._most, self._calm_s = least, most, calm_s
        self._wanted: deque[tuple[float, int]] = deque()

    def wanted(self, sight: Sight) -> int:
        wanted = min(self._most, max(self._least, self._scaler.wanted(sight)))
        self._wanted.append((sight.now, wanted))
        while self._wanted[0][0] < sight.now - self._calm_s:
            self._wanted.popleft()
        if wanted >= sight.replicas:
            return wanted
        return min(sight.replicas, max(count for _, count in self._wanted))


def _above_zero(name: str, value: float) -> float:
    if not value > 0:
        raise _invalid(f"{name} must be above 0, given {value}", name)
    return value


def _invalid(message: str, param: str) -> ArmillaryError:
    return ArmillaryError(Code.INVALID_DEPLOYMENT, message, param)
