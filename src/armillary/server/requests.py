"""The requests in flight and the latest that ended, for whoever looks on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Literal
from weakref import WeakSet

from typing_extensions import TypedDict

from armillary.core.recent import Recent
from armillary.server.tally import RequestState, Tally

ENDED_KEPT = 1000
WINDOW_S = 60.0
"""How far back the quantiles look."""


class RequestCard(TypedDict):
    """One request, without a word of what was said."""

    object: Literal["request"]
    id: str | None
    request_id: str
    model: str | None
    endpoint: str
    state: RequestState
    created: float
    wall_s: float
    stream: bool | None
    prompts: int | None
    choices: int | None
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    max_tokens: int | None
    ttft_s: float | None
    itl_s: float | None
    finish_reason: str | None
    error: str | None


class Quantiles(TypedDict):
    p50: float | None
    p95: float | None


class Window(TypedDict):
    """How it went for the requests that ended lately."""

    seconds: float
    ended: int
    ttft_s: Quantiles
    itl_s: Quantiles
    wall_s: Quantiles


class RequestLog:
    """Bounded; in the event loop's thread."""

    def __init__(self) -> None:
        self._live: dict[int, Tally] = {}
        self._ended: deque[Tally] = deque(maxlen=ENDED_KEPT)
        self.ended = 0
        """How many have ended, those that are forgotten included."""
        self.on_end: list[Callable[[Tally], None]] = []
        """Called with each request that is over."""
        self._gone: WeakSet[Recent] = WeakSet()
        """Of engines that are gone, while requests that ended with them are not over yet."""

    def begun(self, tally: Tally) -> None:
        self._live[id(tally)] = tally

    def over(self, tally: Tally) -> None:
        self._live.pop(id(tally), None)
        self._ended.append(tally)
        self.ended += 1
        for listener in self.on_end:
            listener(tally)
        if tally.recent in self._gone:
            tally.recent = None

    def forget(self, recent: Recent) -> None:
        """Let the steps of an engine go that is gone itself: what ended there is listed on, without its timeline."""
        self._gone.add(recent)
        for tally in self._ended:
            if tally.recent is recent:
                tally.recent = None

    def __iter__(self) -> Iterator[Tally]:
        """Newest arrival first among the live, then latest end first."""
        return chain(reversed(self._live.values()), reversed(self._ended))

    def find(self, name: str, may_watch: Callable[[str], bool]) -> Tally | None:
        """By the response's id, else by the request's or by one that an engine knows part of it by.

        The newest of several, of an owner that may be watched.
        """
        seen = [tally for tally in self if name in _names(tally) and may_watch(tally.owner)]
        return next((tally for tally in seen if tally.id == name), seen[0] if seen else None)

    def window(self, model: str) -> Window:
        """Quantiles over the requests for a model that ended within the last `WINDOW_S` seconds."""
        since = time.monotonic() - WINDOW_S
        lately = []
        for tally in reversed(self._ended):
            if tally.ended_at is None or tally.ended_at < since:
                break
            if tally.model == model:
                lately.append(tally)
        answered = [tally for tally in lately if tally.ended in ("stop", "length")]
        return {
            "seconds": WINDOW_S,
            "ended": len(lately),
            "ttft_s": _quantiles([tally.ttft_s for tally in lately]),
            "itl_s": _quantiles([tally.itl_s for tally in lately]),
            "wall_s": _quantiles([tally.wall_s for tally in answered]),
        }


def _names(tally: Tally) -> Iterator[str | None]:
    """Everything that a request is called. With several prompts, each is a request of its own to the engine."""
    return chain((tally.id, tally.request_id), (ask.id for ask in tally.asks))


def card(tally: Tally) -> RequestCard:
    """A request as it is shown."""
    known = bool(tally.asks)
    return {
        "object": "request",
        "id": tally.id,
        "request_id": tally.request_id,
        "model": tally.model or None,
        "endpoint": tally.endpoint,
        "state": tally.state,
        "created": tally.created,
        "wall_s": tally.wall_s,
        "stream": tally.stream,
        "prompts": len(tally.asks) if known else None,
        "choices": len(tally.tokens) if known else None,
        "prompt_tokens": tally.prompt_tokens,
        "cached_tokens": tally.cached_tokens if known else None,
        "completion_tokens": sum(tally.tokens) if known else None,
        "max_tokens": tally.asks[0].max_tokens if known else None,
        "ttft_s": tally.ttft_s,
        "itl_s": tally.itl_s,
        "finish_reason": tally.ended if tally.ended_at is not None else None,
        "error": tally.error,
    }


def _quantiles(values: list[float | None]) -> Quantiles:
    """Nearest-rank quantiles of what is known."""
    known: list[Any] = sorted(value for value in values if value is not None)
    if not known:
        return {"p50": None, "p95": None}
    return {"p50": known[(len(known) - 1) // 2], "p95": known[min(len(known) - 1, int(0.95 * len(known)))]}
