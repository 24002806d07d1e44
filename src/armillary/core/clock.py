"""Time as an argument: the engine reads a clock that somebody hands it."""

from __future__ import annotations

from math import inf
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
