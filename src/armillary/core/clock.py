"""Time as an argument: the engine reads a clock that somebody hands it."""

from __future__ import annotations

from math import inf, isfinite
from typing import Protocol


class Clock(Protocol):
    """A source of seconds that never goes backwards."""

    def now(self) -> float:
        """Seconds since an arbitrary origin."""
        ...

    def advance(self, seconds: float) -> None:
        """Let predicted time pass. A clock that follows the wall has nothing to do here."""
        ...


class VirtualClock:
    """Time that passes only when it is told to."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        if not 0.0 <= seconds < inf:
            raise ValueError(f"seconds must be 0 or more and finite, given {seconds}: a clock never goes backwards")
        self._now += seconds

    def advance_to(self, moment: float) -> None:
        """Jump to a moment (the next arrival, a recorded time) without the rounding of a difference."""
        if not self._now <= moment < inf:
            raise ValueError(f"moment must be at or after {self._now} and finite, given {moment}")
        self._now = moment


class SteadyTime:
    """The time of a clock that cannot be trusted: it goes on where the clock jumps back or says nothing.

    A clock that keeps its promise is told as it is. One that jumps back by an hour would else hold up every
    deadline for an hour. A jump forward cannot be told from time that passed.
    """

    __slots__ = ("_clock", "_last", "_lead", "_told")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = self._told = clock.now()
        self._lead = 0.0
        """What the clock has lost by jumping back."""

    def read(self) -> float:
        """The time now. One thread reads."""
        raw = self._clock.now()
        if self._last <= raw < inf and not self._lead:  # nearly always
            self._last = self._told = raw
            return raw
        if not isfinite(raw):
            return self._told
        if raw < self._last:
            self._lead = self._told - raw
        self._last = raw
        self._told = max(self._told, raw + self._lead)
        return self._told

    def peek(self) -> float:
        """The time now, for other threads: as `read`, and nothing is noted."""
        raw = self._clock.now()
        return max(self._told, raw + self._lead) if isfinite(raw) else self._told
