"""What all endpoints share: the model once it is loaded, the phase of life, and what is in flight."""

from __future__ import annotations

import math
import time
from collections import deque
from enum import StrEnum

from armillary.deployment import ServerSettings
from armillary.errors import ArmillaryError, Code
from armillary.runtime.worker import WorkerStats
from armillary.server.body import BodyBudget
from armillary.server.metrics import ServerMetrics
from armillary.server.served import Served
from armillary.server.tally import Tally

BODIES = 4
"""How many bodies of the largest size may be held at once. Parsed, each takes several times its size."""


class Phase(StrEnum):
    """Where a server is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Service:
    """The state behind the endpoints. Lives in the event loop's thread.

    Args:
        settings: limits and patience.
        name: the model that is served, or will be once it is loaded.
        reader_patience_s: seconds that one write to a client may wait.
    """

    def __init__(self, settings: ServerSettings, name: str, reader_patience_s: float = 60.0) -> None:
        self.settings = settings
        self.name = name
        self.reader_patience_s = reader_patience_s
        self.phase = Phase.LOADING
        self.served: Served | None = None
        self.in_flight = 0
        self.bodies = BodyBudget(BODIES * settings.max_body)
        self.metrics = ServerMetrics(self.stats, lambda: self.phase is Phase.READY, self.idle_s)
        self._ends: deque[float] = deque(maxlen=64)

    def open(self, served: Served) -> None:
        """The model is loaded: accept requests."""
        self.served = served
        self.phase = Phase.READY

    def check_open(self) -> None:
        """Raise UNAVAILABLE, with what the server is doing instead, unless requests are accepted now."""
        if self.phase is not Phase.READY:
            raise ArmillaryError(Code.UNAVAILABLE, f"the server accepts no requests now: it is {self.phase}")

    async def model(self, name: str) -> Served:
        """The model that a request names, ready to compute.

        Raises:
            ArmillaryError: MODEL_NOT_FOUND; UNAVAILABLE while it cannot answer, with what it is doing instead.
        """
        self.check_open()
        if self.served is None or name != self.served.name:
            raise ArmillaryError(
                Code.MODEL_NOT_FOUND,
                f"the model {name[:200]!r} does not exist here; this server has {self.name!r}",
                "model",
            )
        return self.served

    def begin(self, endpoint: str) -> Tally:
        """A generation request has arrived; `finish` must follow."""
        self.in_flight += 1
        return Tally(self.metrics, endpoint)

    def finish(self, tally: Tally) -> None:
        """The request is over. One that nobody ended was left by its client."""
        self.in_flight -= 1
        tally.end("cancelled")
        if tally.ended in ("stop", "length"):
            self._ends.append(time.monotonic())

    def idle_s(self) -> float:
        """Seconds since the engine's last progress, while it has work."""
        return 0.0 if self.served is None else self.served.worker.progress

    def stalled(self) -> float | None:
        """`idle_s` where it is longer than the patience with the engine, else None."""
        idle = self.idle_s()
        return idle if idle > self.settings.stall_s else None

    def retry_after(self) -> int:
        """Seconds until the queue may have room, from how fast requests have ended lately; 1 to 60."""
        stats = self.stats()
        if stats is None or len(self._ends) < 2:
            return 1
        rate = len(self._ends) / max(0.001, time.monotonic() - self._ends[0])
        return max(1, min(60, math.ceil(stats.waiting / rate / 2)))

    def stats(self) -> WorkerStats | None:
        """The engine's state now; None before there is an engine."""
        return None if self.served is None else self.served.worker.stats()
