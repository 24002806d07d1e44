"""From the engine's thread to the event loop, with one wake-up per step however many requests it served."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from armillary.core.step import Event

log = logging.getLogger("armillary.server")

Deliver = Callable[[list[Event], float], None]
"""Takes the events of one request and the time (monotonic seconds) at which the engine had them."""


class Mailbox:
    """Posted to from any thread, delivered in the loop's.

    A wake-up costs a system call and a turn of the loop; requests that share a step share it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._inbox: deque[tuple[Deliver, list[Event], float]] = deque()
        self._woken = False

    def post(self, deliver: Deliver, events: list[Event]) -> None:
        """Hand events over. Called in the engine's thread; never blocks, never raises."""
        self._inbox.append((deliver, events, time.monotonic()))
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed: nobody is left to read
                self._inbox.clear()

    def _deliver(self) -> None:
        self._woken = False  # before emptying the box: a post from here on wakes the loop again
        while self._inbox:
            deliver, events, at = self._inbox.popleft()
            try:
                deliver(events, at)
            except Exception:
                log.exception("events of %s could not be delivered", events[0].request_id if events else "nobody")
