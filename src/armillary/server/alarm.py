"""A timer that is put off again and again and hardly ever rings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls `ring` at the moment that was set last, unless it is put off or cleared before.

    To set it costs little more than to note the moment: the loop's timer stays as it is where it is early enough, and
    looks again when it goes off. `asyncio.timeout` makes a timer each time and throws it away, which is too dear for
    every token of every stream.

    Lives in the event loop's thread. Moments are of the loop's clock.
    """

    __slots__ = ("_at", "_loop", "_ring", "_timer")

    def __init__(self, ring: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ring = ring
        self._at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, at: float) -> None:
        """Ring at this moment, and at no other."""
        self._at = at
        if self._timer is None:
            self._timer = self._loop.call_at(at, self._look)
        elif self._timer.when() > at:
            self._timer.cancel()
            self._timer = self._loop.call_at(at, self._look)

    def clear(self) -> None:
        """Do not ring until it is set again."""
        self._at = None

    def end(self) -> None:
        """Do not ring, and leave nothing in the loop."""
        self._at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._at is None:
            return
        if self._loop.time() < self._at:
            self._timer = self._loop.call_at(self._at, self._look)
            return
        self._at = None
        self._ring()
