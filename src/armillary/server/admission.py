"""Who asks, how much of the server they may take, and how much of it they have taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from armillary.core.load import Share
from armillary.core.request import Request
from armillary.errors import ArmillaryError, Code, Refused
from armillary.server.bucket import Bucket
from armillary.server.exchange import current


@dataclass(frozen=True, slots=True)
class Limits:
    """What one caller may take; None for no limit.

    Attributes:
        requests_per_minute, tokens_per_minute: prompt and generated tokens together.
        max_waiting, max_waiting_tokens: of the caller's requests in the queue of one model; each prompt is one request,
            whatever its `n`.
        priority: of requests that bring none; smaller runs first under the `priority` order.
        highest_priority: the smallest number that a request may bring.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_waiting: int | None = None
    max_waiting_tokens: int | None = None
    priority: int = 0
    highest_priority: int | None = None


class Queue(Protocol):
    """What admission asks of the thread that owns an engine."""

    def waiting(self, owner: str | None = None) -> Share: ...

    def seconds_to_work_off(self) -> float | None: ...


class Caller:
    """Everybody who asks with one key; everybody, where no keys are set. Lives in the event loop's thread.

    Args:
        name: by which its requests are counted; never the key itself.
        clock: monotonic seconds.
    """

    def __init__(
        self, name: str = "", limits: Limits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.limits = limits or Limits()
        requests, tokens = self.limits.requests_per_minute, self.limits.tokens_per_minute
        self._requests = None if requests is None else Bucket(requests, clock)
        self._tokens = None if tokens is None else Bucket(tokens, clock)

    def arrive(self) -> None:
        """Count one request.

        Raises:
            Refused: RATE_LIMIT; it is not counted then.
        """
        if self._tokens is not None and (wait := self._tokens.wait_s(1)) > 0:
            raise self._too_fast("tokens_per_minute", "tokens", self._tokens, wait)
        if self._requests is not None:
            if (wait := self._requests.wait_s(1)) > 0:
                raise self._too_fast("requests_per_minute", "requests", self._requests, wait)
            self._requests.take(1)

    def admit(self, requests: Sequence[Request], queue: Queue, at_once: int | None = None) -> None:
        """Let requests to one model pass, and charge for their prompts. What is refused is not charged.

        To be followed by the submissions without giving way to others, so that none slip in between.

        Args:
            at_once: most of them that are submitted before others have ended; None: all are.

        Raises:
            Refused: QUEUE_FULL where this caller has too much waiting, RATE_LIMIT.
        """
        limits, tokens = self.limits, sum(len(request.prompt) for request in requests)
        if limits.max_waiting is not None or limits.max_waiting_tokens is not None:
            mine = queue.waiting(self.name)
            most_new = len(requests) if at_once is None else min(len(requests), at_once)
            for reason, most, waits, more in (
                ("key_queue_requests", limits.max_waiting, mine.requests, most_new),
                ("key_queue_tokens", limits.max_waiting_tokens, mine.tokens, tokens),
            ):
                if most is not None and waits and waits + more > most:
                    what = "requests" if reason == "key_queue_requests" else "tokens"
                    raise Refused(
                        Code.QUEUE_FULL,
                        reason,
                        f"{what} of one key that wait must be at most {most}, given {waits} and {more} more; try "
                        "again when some have run",
                        retry_s=_share_of(queue, mine),
                    )
        if self._tokens is not None:
            if (wait := self._tokens.wait_s(tokens)) > 0:
                raise self._too_fast("tokens_per_minute", "tokens", self._tokens, wait)
            self._tokens.take(tokens)

    def charge(self, tokens: int) -> None:
        """Tokens that were generated; negative ones are given back."""
        if self._tokens is not None:
            self._tokens.take(tokens)

    def priority(self, given: int | None) -> int:
        """The priority of a request that brings this one.

        Raises:
            ArmillaryError: INVALID_REQUEST where this caller may not have it.
        """
        most = self.limits.highest_priority
        if given is None:
            return self.limits.priority
        if most is not None and given < most:
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                f"priority must be at least {most} with this key (smaller runs first), given {given}",
                "priority",
            )
        return given

    def headers(self) -> list[tuple[bytes, bytes]]:
        """`x-ratelimit-*`, as OpenAI has them; none without a limit."""
        found = []
        for kind, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                values = (str(bucket.per_minute), str(bucket.remaining), duration(bucket.full_in_s))
                for what, value in zip(("limit", "remaining", "reset"), values, strict=True):
                    found.append((f"x-ratelimit-{what}-{kind}".encode(), value.encode()))
        return found

    def take_over(self, before: Caller) -> None:
        """Go on with what another has left, where the limits are the same."""
        if before.limits.requests_per_minute == self.limits.requests_per_minute:
            self._requests = before._requests
        if before.limits.tokens_per_minute == self.limits.tokens_per_minute:
            self._tokens = before._tokens

    @staticmethod
    def _too_fast(reason: str, what: str, bucket: Bucket, wait_s: float) -> Refused:
        return Refused(
            Code.RATE_LIMIT,
            reason,
            f"{what} must be at most {bucket.per_minute} a minute with this key, given more; {bucket.remaining} are "
            f"left, and in {duration(wait_s)} there will be enough",
            retry_s=wait_s,
        )


NOBODY = Caller()


def caller() -> Caller:
    """Who asks, in whatever runs on behalf of a request."""
    exchange = current.get()
    return NOBODY if exchange is None or exchange.caller is None else exchange.caller


def duration(seconds: float) -> str:
    """Seconds as OpenAI writes them in headers: `20ms`, `1.5s`, `6m0s`."""
    milliseconds = round(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s"


def _share_of(queue: Queue, mine: Share) -> float | None:
    """How long the queue takes for a caller's part of it: its own requests do not wait for themselves alone."""
    seconds, everything = queue.seconds_to_work_off(), queue.waiting()
    if seconds is None or not everything.tokens:
        return seconds
    return seconds * mine.tokens / everything.tokens
