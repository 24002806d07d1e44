"""How fast a core of this machine is while something else is measured.

A virtual machine's cores are shared with others that it cannot see: equal work takes up to twice as long from one
minute to the next. A watcher does the same small piece of work over and over, and the processor time that it takes says
how fast cores were meanwhile. What it waits for a core does not count; what the host takes away while it has one does.
"""

from __future__ import annotations

import threading
import time
from statistics import fmean
from types import TracebackType

EVERY_S = 0.05
_TURNS = 2000
"""Some 0.1 to 0.3 ms of the interpreter."""


def sample_s() -> float:
    """Seconds of processor time that a fixed piece of work takes now."""
    began = time.thread_time()
    total = 0
    for turn in range(_TURNS):
        total += turn
    return time.thread_time() - began


class PaceWatch:
    """Samples in a thread of its own between `__enter__` and `__exit__`; costs under a hundredth of a core.

    Attributes:
        samples: (seconds of `time.monotonic`, seconds of a sample).
    """

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pace", daemon=True)

    def __enter__(self) -> PaceWatch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def mean_s(self, begin: float = float("-inf"), end: float = float("inf")) -> float | None:
        """Mean of the samples taken between two moments; None where there are none."""
        chosen = [seconds for at, seconds in self.samples if begin <= at <= end]
        return fmean(chosen) if chosen else None

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            self.samples.append((time.monotonic(), sample_s()))
