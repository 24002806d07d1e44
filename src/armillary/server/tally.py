"""What is counted about one HTTP request: how it ended, exactly once, and how long each part took."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from armillary.core.recent import Life, Recent
from armillary.core.request import Request
from armillary.errors import ArmillaryError, Code, reason_of
from armillary.server.errors import DEFAULT_LOOK, LOOKS
from armillary.server.exchange import Exchange, current
from armillary.server.metrics import ServerMetrics

if TYPE_CHECKING:
    from armillary.server.requests import RequestLog


TRACE_HEADERS = ("traceparent", "tracestate")
"""What is kept of a request's headers: which trace it belongs to. Never its key."""


class RequestState(StrEnum):
    """How far a request has come, as the server knows it."""

    RECEIVING = "receiving"
    """Its body is read, checked and tokenised."""
    WAITING = "waiting"
    """The engine has it; there is no token yet."""
    GENERATING = "generating"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to the engine, made on behalf of an HTTP request. No prompt, only its length."""

    id: str
    prompt_tokens: int
    choices: int
    max_tokens: int


class Tally:
    """Times are monotonic seconds. The first reason given for the end is the one that counts.

    Args:
        log: is told of the beginning and of the end.
    """

    def __init__(self, metrics: ServerMetrics, endpoint: str, log: RequestLog | None = None) -> None:
        self._metrics = metrics
        self._log = log
        self.endpoint = endpoint
        exchange = current.get() or Exchange("", headers={})
        exchange.tally = self
        self.request_id = exchange.request_id
        self.owner = exchange.owner
        self.trace = {name: exchange.headers[name] for name in TRACE_HEADERS if name in exchange.headers}
        self.arrived = exchange.arrived
        self.created = exchange.created
        self.id: str | None = None
        """Of the response."""
        self.model = ""
        """Empty until the body has been understood."""
        self.stream: bool | None = None
        self.asks: list[Ask] = []
        self.recent: Recent | None = None
        """Where the engine's steps are remembered."""
        self.sampling: object = None
        """How the first of the requests to the engine is sampled; forgotten at the end."""
        self.cached_tokens = 0
        self.tokens: list[int] = []
        """Tokens generated, of each choice."""
        self.detokenise_s = 0.0
        self.first_at: float | None = None
        self.ended: str | None = None
        self.ended_at: float | None = None
        self.error: str | None = None
        """Code of the error that it ended with."""
        self._gaps = 0
        self._gap_s = 0.0
        if log is not None:
            log.begun(self)

    def understood(self, model: str, response_id: str, requests: list[Request], recent: Recent | None) -> None:
        """The body has become requests to an engine."""
        self.model, self.id, self.recent = model, response_id, recent
        self.asks = [Ask(r.id, len(r.prompt), r.n, r.max_tokens) for r in requests]
        self.tokens = [0] * sum(ask.choices for ask in self.asks)
        self.sampling = requests[0].sampling
        self._inter_token = self._metrics.inter_token.labels(model)

    def first_token(self, at: float) -> None:
        self.first_at = at
        if self.asks and self.asks[0].max_tokens:  # a vector is no token
            self._metrics.time_to_first_token.labels(self.model).observe(at - self.arrived)

    def next_token(self, gap: float) -> None:
        self._gaps += 1
        self._gap_s += gap
        self._inter_token.observe(gap)

    def count(self, prompt_tokens: int, completion_tokens: int) -> None:
        self._metrics.prompt_tokens.labels(self.model).inc(prompt_tokens)
        self._metrics.completion_tokens.labels(self.model).inc(completion_tokens)
        self._metrics.prompt_length.labels(self.model).observe(prompt_tokens)
        if completion_tokens:  # vectors have none
            self._metrics.completion_length.labels(self.model).observe(completion_tokens)

    def fail(self, error: ArmillaryError, accepted: bool = False) -> None:
        """The request ends with this error: refused where the client or the load is at fault and it never ran."""
        if self.ended is not None:
            return
        look = LOOKS.get(error.code, DEFAULT_LOOK)
        refused = not accepted and (look.status < 500 or look.retry)
        self.error = error.code.value
        counter = self._metrics.rejected if refused else self._metrics.errors
        counter.labels(self.model, reason_of(error) if refused else self.error).inc()
        late = error.code is Code.DEADLINE
        self.end("deadline" if late else "refused" if refused else "error")

    def end(self, reason: str) -> None:
        """`reason` is one of `metrics.FINISHES`."""
        if self.ended is not None:
            return
        self.ended = reason
        self._metrics.requests.labels(self.model, self.endpoint, reason).inc()
        if reason in ("stop", "length"):
            self._metrics.request_time.labels(self.model).observe(time.monotonic() - self.arrived)

    def finish(self) -> None:
        """The response is over. A request that nobody ended was left by its client."""
        if self.ended_at is not None:
            return
        if self.ended is None:
            self._metrics.cancellations.labels(self.model, self.where()).inc()
            self.end("cancelled")
        self.ended_at = time.monotonic()
        if self._log is not None:
            self._log.over(self)
        self.sampling = None

    @property
    def state(self) -> RequestState:
        if self.ended_at is not None:
            return RequestState.ENDED
        if self.first_at is not None:
            return RequestState.GENERATING
        return RequestState.WAITING if self.asks else RequestState.RECEIVING

    def where(self) -> str:
        """Where a request is that is being left: one of `metrics.LEAVINGS`."""
        state = self.state
        if state is RequestState.WAITING:
            begun = self.recent is not None and any(self.recent.admitted(ask.id) for ask in self.asks)
            return "prefill" if begun else "queued"
        return "decode" if state is RequestState.GENERATING else "received"

    @property
    def wall_s(self) -> float:
        """From arrival to the end, or until now."""
        return (self.ended_at if self.ended_at is not None else time.monotonic()) - self.arrived

    @property
    def queued_s(self) -> float | None:
        """From submission to the first admission, of the first of its requests to the engine."""
        life = self._life
        return None if life is None or not life.marks else life.marks[0].at - life.arrival

    @property
    def submitted_at(self) -> float | None:
        """When the engine took the first of its requests."""
        life = self._life
        return None if life is None else life.arrival

    @property
    def _life(self) -> Life | None:
        """What the engine remembers of the first of its requests."""
        return None if self.recent is None or not self.asks else self.recent.lives.get(self.asks[0].id)

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_at is None else self.first_at - self.arrived

    @property
    def itl_s(self) -> float | None:
        """Mean time between consecutive tokens of a choice."""
        return self._gap_s / self._gaps if self._gaps else None

    @property
    def prompt_tokens(self) -> int | None:
        return sum(ask.prompt_tokens for ask in self.asks) if self.asks else None
