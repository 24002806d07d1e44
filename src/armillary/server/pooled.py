"""One HTTP request for vectors or scores: many requests to the engine, all answered or none."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fastapi import Request as HttpRequest
from pydantic import Field
from starlette.responses import Response

from armillary.core.request import FinishReason, Request
from armillary.core.step import Event
from armillary.errors import ArmillaryError, Code
from armillary.runtime.embed import failure_of, too_late
from armillary.server.admission import caller
from armillary.server.endpoint import compute, json_response
from armillary.server.fields import MAX_INT, AnyBody
from armillary.server.generation import OVERDUE_S
from armillary.server.served import Served
from armillary.server.service import Service
from armillary.server.sse import while_connected
from armillary.server.tally import Tally

log = logging.getLogger("armillary.server")

Body = TypeVar("Body", bound="PooledBody")
RETRY_S = 0.05
"""Pause before offering again what a full queue refused."""
LARGE_ANSWER = 100_000
"""Numbers from which an answer is written in a thread of its own, so that it does not hold up the streams."""


class PooledBody(AnyBody):
    """What the endpoints for vectors and scores share."""

    model: str = Field(min_length=1, max_length=512, description="The served name, as `/v1/models` lists it.")
    user: str | None = Field(None, description="Not used.")
    priority: int | None = Field(
        None, ge=-MAX_INT, le=MAX_INT, description="Extension. Smaller first, under the priority order."
    )
    deadline_s: float | None = Field(
        None, gt=0, le=1e7, description="Extension. Seconds from now by which the answer is wanted. Nothing ends."
    )
    timeout: float | None = Field(
        None, gt=0, le=1e7, description="Extension. Seconds from arrival after which the request ends, as a failure."
    )

    @property
    def stream(self) -> None:
        """There is nothing to stream."""
        return None


@dataclass(frozen=True, slots=True)
class Batch:
    """What an HTTP request became.

    Attributes:
        numbers: how many there will be in the answer, about.
        answer: makes the body of the answer of what the engine found, in the order of the requests.
    """

    response_id: str
    requests: Sequence[Request]
    numbers: int
    answer: Callable[[list[Any]], Any]

    @property
    def prompt_tokens(self) -> int:
        return sum(len(request.prompt) for request in self.requests)


async def pool(
    request: HttpRequest,
    service: Service,
    endpoint: str,
    fields: type[Body],
    to_batch: Callable[[Body, Served], Batch],
) -> Response:
    """The path of such a request: read, check, tokenise, compute, answer."""
    tally = service.begin(endpoint)
    try:
        service.check_room()

        def work(body: Body, served: Served) -> tuple[Served, Batch]:
            return served, to_batch(body, served)

        served, batch = await compute(request, service, fields, work)
        tally.understood(served.name, batch.response_id, list(batch.requests), served.recent)
        log.debug("%s: %d texts of %d tokens", batch.response_id, len(batch.requests), batch.prompt_tokens)
        found = await while_connected(request.receive, Pooling(served, batch, tally).run())

        def write() -> Response:
            return json_response(batch.answer(found))

        return await asyncio.to_thread(write) if batch.numbers >= LARGE_ANSWER else write()
    except ArmillaryError as error:
        tally.fail(error)
        raise
    finally:
        service.finish(tally)


class Pooling:
    """Runs a batch. In flight are as many of its requests as fill two steps, and no more than one key may have
    waiting: a batch of thousands is not in the way of others, and needs no room of its own in the queue."""

    def __init__(self, served: Served, batch: Batch, tally: Tally) -> None:
        self._served = served
        self._batch = batch
        self._tally = tally
        self._caller = caller()
        two_steps = 2 * served.limits.max_running
        self._at_once = min(two_steps, self._caller.limits.max_waiting or two_steps)
        """Most of its requests in flight."""
        self._left = deque(batch.requests)
        self._flying: set[str] = set()
        self._found: dict[str, object] = {}
        self._error: ArmillaryError | None = None
        self._full: ArmillaryError | None = None
        """Why the engine refused a request; None once one of ours has ended since."""
        self._wake = asyncio.Event()

    async def run(self) -> list[object]:
        """What was found about each request. Cancelled or failed, it leaves nothing behind.

        Raises:
            ArmillaryError: the engine refused or failed one of them, or its time was over.
        """
        loop = asyncio.get_running_loop()
        accepted = False
        try:
            self._caller.admit(self._batch.requests, self._served.worker, self._at_once)
            accepted = True
            async with asyncio.timeout_at(self._overdue(loop.time())):
                while len(self._found) < len(self._batch.requests):
                    self._fill(loop)
                    await self._wake.wait()
                    self._wake.clear()
                    if self._error is not None:
                        raise self._error
            self._tally.count(self._batch.prompt_tokens, 0)
            self._tally.end("stop")
            return [self._found[request.id] for request in self._batch.requests]
        except TimeoutError:
            self._give_back()
            late = too_late()
            self._tally.fail(late, accepted=True)
            raise late from None
        except ArmillaryError as error:
            if accepted:
                self._give_back()
            self._tally.fail(error, accepted=self._error is not None and error.code is not Code.QUEUE_FULL)
            raise
        finally:
            for request_id in self._flying:
                self._served.worker.cancel(request_id)

    def _give_back(self) -> None:
        """Take back the charge for what the engine has not computed: all of it where nothing was found."""
        requests = self._left if self._found else self._batch.requests
        self._caller.charge(-sum(len(request.prompt) for request in requests))

    def _fill(self, loop: asyncio.AbstractEventLoop) -> None:
        """Submit what has room."""
        worker, post = self._served.worker, partial(self._served.mailbox.post, self._deliver)
        while self._left and self._full is None and len(self._flying) < self._at_once:
            request = self._left.popleft()
            self._flying.add(request.id)
            worker.submit_soon(request, post).add_done_callback(partial(self._answered, loop, request))

    def _answered(self, loop: asyncio.AbstractEventLoop, request: Request, future: Future[None]) -> None:
        """The engine has taken a request, or not. In the engine's thread, or in ours."""
        error = future.exception()
        if error is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._refused, request, error)

    def _refused(self, request: Request, error: BaseException) -> None:
        self._flying.discard(request.id)
        if not isinstance(error, ArmillaryError):
            self._error = ArmillaryError(Code.ENGINE_FAILED, f"the request could not be accepted: {error}")
        elif error.code is Code.QUEUE_FULL:
            self._left.appendleft(request)
            self._full = error
            if not self._flying:  # nothing of ours will end and make room
                if self._found:
                    asyncio.get_running_loop().call_later(RETRY_S, self._try_again)
                else:
                    self._error = error
        else:
            self._error = error
        self._wake.set()

    def _try_again(self) -> None:
        """Others had the room, and half of the answer is no answer: wait until they have ended."""
        self._full = None
        self._wake.set()

    def _deliver(self, events: list[Event], at: float) -> None:
        """Take one step's news in, in the event loop."""
        for event in events:
            if event.request_id not in self._flying:
                continue
            self._flying.discard(event.request_id)
            if event.finish is FinishReason.STOP and event.prompt_detail is not None:
                if not self._found:
                    self._tally.first_token(at)
                self._found[event.request_id] = event.prompt_detail
                self._tally.cached_tokens += event.cached
            else:
                worker = self._served.worker
                self._error = failure_of(event, stopped=not worker.alive and worker.failure is None)
        self._full = None
        if self._left or self._error is not None or not self._flying:
            self._wake.set()

    def _overdue(self, now: float) -> float | None:
        """When to give up on an engine that does not end what has no more time."""
        moments = [request.expires for request in self._batch.requests if request.expires is not None]
        return now + min(moments) - self._served.clock() + OVERDUE_S if moments else None
