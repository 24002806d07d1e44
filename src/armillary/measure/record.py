"""What the client saw of one request."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Outcome(StrEnum):
    """How a request ended, as the client saw it."""

    OK = "ok"
    SHED = "shed"
    """The server refused it for load: 429 or 503."""
    REFUSED = "refused"
    """Any other HTTP status of 400 or above."""
    FAILED = "failed"
    """The stream carried an error, or ended before it was complete."""
    UNREACHED = "unreached"
    """No connection, or it broke before an answer began."""
    TIMEOUT = "timeout"


@dataclass(slots=True)
class RequestRecord:
    """One request. Times are seconds from the run's start, on the client's monotonic clock.

    Latencies count from `due`, the moment at which the request should have been sent, never from the moment
    at which a busy client got round to it; otherwise the slowest moments would be measured the least (coordinated
    omission).
    """

    id: str
    due: float
    sent: float = 0.0
    first: float | None = None
    """When the first generated text arrived."""
    end: float | None = None
    """When the last generated text or the finish reason arrived; for other outcomes, when the client gave up."""
    gaps: list[float] = field(default_factory=list)
    """Seconds between one arrival of generated text and the next."""
    outcome: Outcome = Outcome.UNREACHED
    status: int | None = None
    error: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int = 0
    counted_by: str = "events"
    """`usage` where the server said how many tokens it generated, `events` where arrivals of text were counted."""
    cached_tokens: int | None = None
    finish_reason: str | None = None
    wanted_tokens: int = 0
    deadline: float | None = None
    """Seconds after `due`."""
    slo_class: str | None = None
    session: str | None = None

    @property
    def ok(self) -> bool:
        return self.outcome is Outcome.OK

    @property
    def lateness(self) -> float:
        """Seconds by which the client itself was late in sending."""
        return max(0.0, self.sent - self.due)

    @property
    def ttft(self) -> float | None:
        """Time to first token."""
        return None if self.first is None else self.first - self.due

    @property
    def e2e(self) -> float | None:
        """Time to the end of the answer."""
        return None if self.end is None else self.end - self.due

    @property
    def tpot(self) -> float | None:
        """Mean time per output token after the first; None below two tokens."""
        if self.first is None or self.end is None or self.output_tokens < 2:
            return None
        return (self.end - self.first) / (self.output_tokens - 1)
