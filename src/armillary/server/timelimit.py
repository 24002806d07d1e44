"""How long a client waits: what it says, and what follows from it.

Three things say it. `timeout` in the body and `x-request-timeout` are limits: when the time is over, the
request ends as a failure. `x-stainless-read-timeout` is how long the `openai` and `anthropic` clients wait for
the next byte, and so a hint. While nothing is streamed, the next byte is the whole answer: the request is
ordered by that moment, and ended soon after it, when nobody listens any more. In a stream every byte starts
the wait anew, so the hint limits nothing; there it bounds how long the server is silent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol

from armillary.errors import ArmillaryError, Code
from armillary.runtime.embed import too_late
from armillary.server.exchange import Exchange

HEADER = "x-request-timeout"
HINT = "x-stainless-read-timeout"
MOST_S = 1e7
"""Seconds; longer limits are none."""
GONE_S = 1.0
"""Seconds after a client's read timeout at which it has certainly given up, whatever the network took."""


class Wishes(Protocol):
    """What a body may say about time."""

    @property
    def deadline_s(self) -> float | None: ...
    @property
    def timeout(self) -> float | None: ...
    @property
    def stream(self) -> bool | None: ...


@dataclass(frozen=True, slots=True)
class Times:
    """Moments of the engine's clock; None for never.

    Attributes:
        deadline: by when the last token is wanted: the `deadline` order goes by it, nothing ends.
        expires: when the request ends, complete or not.
    """

    deadline: float | None
    expires: float | None


def times_of(body: Wishes, exchange: Exchange | None, now: float) -> Times:
    """The moments that a request's body and headers name, counted from its arrival.

    Args:
        now: the engine's clock.

    Raises:
        ArmillaryError: INVALID_REQUEST where the header is no number.
    """
    arrived = now
    limits = [] if body.timeout is None else [body.timeout]
    wanted = None
    if exchange is not None:
        arrived = now - (time.monotonic() - exchange.arrived)
        given = exchange.headers.get(HEADER)
        if given is not None:
            limits.append(header_seconds(given))
        hint = hint_of(exchange)
        if hint is not None and not body.stream:
            wanted = hint
            limits.append(hint + GONE_S)
    hard = min((limit for limit in limits if limit < MOST_S), default=None)
    soft = min((s for s in (body.deadline_s, wanted, hard) if s is not None), default=None)
    if body.deadline_s is not None:
        soft = body.deadline_s
    return Times(None if soft is None else arrived + soft, None if hard is None else arrived + hard)


@asynccontextmanager
async def in_time(exchange: Exchange | None) -> AsyncIterator[Callable[[Any], None]]:
    """For what comes before the engine knows of a request, and its end of time with it: reading, compiling, waking.

    Yields what is to be told of the body, once there is one. Threads that were waited for run to their end.

    Raises:
        ArmillaryError: DEADLINE when the time is over; INVALID_REQUEST where the header is no number.
    """
    now = asyncio.get_running_loop().time
    given = None if exchange is None else exchange.headers.get(HEADER)
    first = None
    if exchange is not None and given is not None:
        first = now() + header_seconds(given) - (time.monotonic() - exchange.arrived)
    try:
        async with asyncio.timeout_at(first) as limit:

            def known(body: Any) -> None:
                if hasattr(body, "deadline_s"):  # else it is of an endpoint that knows of no time
                    limit.reschedule(times_of(body, exchange, now()).expires)

            yield known
    except TimeoutError:
        if not limit.expired():
            raise
        raise too_late() from None


def header_seconds(text: str) -> float:
    """The value of `x-request-timeout`. It may be what is left of a limit upstream, and so zero or less.

    Raises:
        ArmillaryError: INVALID_REQUEST.
    """
    try:
        seconds = float(text) if len(text) <= 40 else float("nan")
    except ValueError:
        seconds = float("nan")
    if not isfinite(seconds):
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"{HEADER} must be a number of seconds such as 2.5, given {text[:40]!r}", HEADER
        )
    return seconds


def hint_of(exchange: Exchange | None) -> float | None:
    """Seconds that the client waits for a byte; None where it does not say so, or says no sensible number."""
    text = "" if exchange is None else exchange.headers.get(HINT, "")
    try:
        seconds = float(text) if len(text) <= 40 else 0.0
    except ValueError:
        return None
    return seconds if 0.0 < seconds < MOST_S else None


def silence(exchange: Exchange | None, longest_s: float) -> float:
    """Seconds that a stream may be silent: less than its client waits for a byte, however much work is ahead."""
    hint = hint_of(exchange)
    return longest_s if hint is None else max(0.05, min(longest_s, hint / 2))
