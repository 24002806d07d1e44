"""A token bucket: so much a minute, in one go or spread out."""

from __future__ import annotations

import time
from collections.abc import Callable


class Bucket:
    """Holds up to a minute's worth and fills steadily.

    What turns out to cost more than it was let in for is taken all the same: the level goes below zero, and
    what comes next waits that much longer. So over time no more passes than was allowed.

    Args:
        per_minute: what flows in within a minute, and the most that it holds.
        clock: monotonic seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at = clock()

    @property
    def level(self) -> float:
        """What may be taken now; below zero, what is owed."""
        now = self._clock()
        if now > self._at:
            self._level = min(float(self.per_minute), self._level + (now - self._at) * self.per_minute / 60.0)
        self._at = now
        return self._level

    def wait_s(self, amount: float) -> float:
        """Seconds until so much may be taken; 0.0 for at once. More than the bucket holds needs it full."""
        return max(0.0, min(amount, self.per_minute) - self.level) * 60.0 / self.per_minute

    def take(self, amount: float) -> None:
        """Take so much, whether it is there or not; a negative amount gives back."""
        self._level = min(float(self.per_minute), self.level - amount)

    @property
    def remaining(self) -> int:
        """Whole units that may be taken now."""
        return max(0, int(self.level))

    @property
    def full_in_s(self) -> float:
        """Seconds until it is full again."""
        return (self.per_minute - self.level) * 60.0 / self.per_minute
