"""A stopwatch whose laps leave nothing out, and when this process began."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


class Stopwatch:
    """Laps that follow each other without a gap, so that they add up to the time that passed.

    A lap has a name from its beginning on, so that an onlooker can tell what is being done now. Two laps of one
    name are added. Times are seconds of `time.monotonic`.

    Args:
        first: the name of the first lap.
        began: when it began; now where None.
        on_lap: called with the name of each lap after the first, as it begins.
    """

    def __init__(
        self, first: str, began: float | None = None, on_lap: Callable[[str], None] = lambda name: None
    ) -> None:
        self.began = self._last = time.monotonic() if began is None else began
        self.current: str | None = first
        self.laps: dict[str, float] = {}
        self._on_lap = on_lap

    def begin(self, name: str, at: float | None = None) -> None:
        """End the current lap and begin another, now or at a moment that has passed."""
        self._book(time.monotonic() if at is None else at)
        self.current = name
        self._on_lap(name)

    def end(self) -> None:
        """End the last lap."""
        self._book(time.monotonic())
        self.current = None

    def part(self, first: str, on_lap: Callable[[str], None] = lambda name: None) -> Stopwatch:
        """End the current lap, and start a watch that goes on where it ended; `include` it when it has ended."""
        self.end()
        return Stopwatch(first, self._last, on_lap)

    def include(self, part: Stopwatch, then: str, name: str | None = None) -> None:
        """Take over the laps of a `part`, or its whole time under one name, and begin the next lap where it ended."""
        for lap, seconds in part.laps.items() if name is None else [(name, part.total)]:
            self.laps[lap] = self.laps.get(lap, 0.0) + seconds
        self._last = part._last
        self.current = then

    @property
    def total(self) -> float:
        """Seconds from the beginning of the first lap to the end of the last one that ended."""
        return self._last - self.began

    def _book(self, now: float) -> None:
        if self.current is not None:
            self.laps[self.current] = self.laps.get(self.current, 0.0) + now - self._last
        self._last = now


def process_began() -> float:
    """When this process began, on the scale of `time.monotonic`; as exact as the system's clock tick, 10 ms."""
    try:
        # Seconds since boot, suspended time included. The name of the program may hold blanks and brackets.
        started = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        import psutil

        age = time.time() - psutil.Process().create_time()
    return time.monotonic() - max(0.0, age)
