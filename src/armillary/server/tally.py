"""What is counted about one HTTP request: how it ended, exactly once, and how long each part took."""

from __future__ import annotations

import time

from armillary.errors import ArmillaryError
from armillary.server.errors import DEFAULT_LOOK, LOOKS
from armillary.server.metrics import ServerMetrics


class Tally:
    """Times are monotonic seconds. The first reason given for the end is the one that counts."""

    def __init__(self, metrics: ServerMetrics, endpoint: str) -> None:
        self._metrics = metrics
        self._endpoint = endpoint
        self._arrived = time.monotonic()
        self.ended: str | None = None

    def first_token(self, at: float) -> None:
        self._metrics.time_to_first_token.observe(at - self._arrived)

    def next_token(self, gap: float) -> None:
        self._metrics.inter_token.observe(gap)

    def count(self, prompt_tokens: int, completion_tokens: int) -> None:
        self._metrics.prompt_tokens.inc(prompt_tokens)
        self._metrics.completion_tokens.inc(completion_tokens)

    def fail(self, error: ArmillaryError) -> None:
        """The request ends with this error: refused where the client or the load is at fault."""
        look = LOOKS.get(error.code, DEFAULT_LOOK)
        self.end("refused" if look.status < 500 or look.retry else "error")

    def end(self, reason: str) -> None:
        """`reason` is one of `metrics.FINISHES`."""
        if self.ended is not None:
            return
        self.ended = reason
        self._metrics.requests.labels(self._endpoint, reason).inc()
        if reason in ("stop", "length"):
            self._metrics.request_time.observe(time.monotonic() - self._arrived)
