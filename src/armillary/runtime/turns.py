"""Who computes when several engines share one machine's cores.

An engine's step uses all of its threads at once. Two steps at the same time on the same cores do not take twice
as long but many times, because threads that wait for each other in every layer are put to sleep by the system in
the wrong moments. So steps take turns: a step runs when its threads are free, in the order of asking. Engines
whose threads fit side by side (`threads` of their settings) run at the same time; others alternate, one step each.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType


class Turns:
    """Places for `capacity` threads, given away in the order of asking."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = capacity
        self._lock = threading.Lock()
        self._queue: deque[tuple[int, threading.Event]] = deque()

    def take(self, threads: int) -> None:
        """Wait until so many threads may run. More than there are count as all of them."""
        threads = min(threads, self.capacity)
        with self._lock:
            if not self._queue and threads <= self._free:
                self._free -= threads
                return
            mine = threading.Event()
            self._queue.append((threads, mine))
        mine.wait()

    def give(self, threads: int) -> None:
        """Let others run."""
        with self._lock:
            self._free += min(threads, self.capacity)
            while self._queue and self._queue[0][0] <= self._free:
                wanted, waiting = self._queue.popleft()
                self._free -= wanted
                waiting.set()


class Turn:
    """One engine's way to its turns: `with turn: compute`.

    Args:
        before: called in the computing thread at the beginning of every turn.
    """

    def __init__(self, turns: Turns, threads: int, before: Callable[[], None] = lambda: None) -> None:
        self._turns = turns
        self._threads = threads
        self._before = before

    def __enter__(self) -> None:
        self._turns.take(self._threads)
        self._before()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turns.give(self._threads)
