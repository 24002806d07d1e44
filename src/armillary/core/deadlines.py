"""Requests that must end at a moment, whatever their state."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf

from armillary.core.request import Request


class Deadlines:
    """A heap over `Request.expires`. Looking costs one comparison while nobody's time is over.

    Most requests end before their time. Their entries are dropped when they surface, and all at once when
    there are many.

    Args:
        alive: whether this very request (not another of the same id) has not ended.
    """

    def __init__(self, alive: Callable[[Request], bool]) -> None:
        self._alive = alive
        self._heap: list[tuple[float, int, Request]] = []
        self._serial = 0
        self._limit = 64

    def __len__(self) -> int:
        return len(self._heap)

    def enter(self, request: Request) -> None:
        """Watch a request that has just been accepted; one that may take for ever is not entered."""
        if request.expires is None:
            return
        self._serial += 1
        heappush(self._heap, (request.expires, self._serial, request))
        if len(self._heap) > self._limit:
            self._heap = [entry for entry in self._heap if self._alive(entry[2])]
            heapify(self._heap)
            self._limit = 64 + 2 * len(self._heap)

    @property
    def next(self) -> float:
        """A time before which nobody's time is over."""
        return self._heap[0][0] if self._heap else inf

    def due(self, now: float) -> list[Request]:
        """The requests whose time is over, earliest first. They are not watched any more."""
        due = []
        heap = self._heap
        while heap and heap[0][0] <= now:
            request = heappop(heap)[2]
            if self._alive(request):
                due.append(request)
        return due
