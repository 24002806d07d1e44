"""Server-sent events over ASGI: framing, errors in mid-stream, disconnects, and readers that stop reading.

`data: <json>`, a blank line after each event, `data: [DONE]` at the end; lines that begin with a colon keep
idle connections open and are ignored by clients. Dialects with typed events name the type before the data, and end
with an event of theirs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from armillary.errors import ArmillaryError, Code
from armillary.server.alarm import Alarm
from armillary.server.body import Disconnected
from armillary.server.errors import error_body

log = logging.getLogger("armillary.server")

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

Result = TypeVar("Result")


class SlowReader(Exception):
    """The client has not taken a byte for longer than the server's patience."""


def frame(event: Any) -> bytes:
    """One event on the wire."""
    return b"data: " + to_json(event) + b"\n\n"


def typed_frame(event: Any) -> bytes:
    """One event that has a `type` on the wire, named after it."""
    return f"event: {event['type']}\n".encode() + frame(event)


@dataclass(frozen=True, slots=True)
class Framing:
    """How a dialect writes its streams.

    Attributes:
        frame: one event on the wire.
        silence: what keeps an idle connection open.
        end: what follows the last event.
        failed: the events that tell of a failure in mid-stream.
    """

    frame: Callable[[Any], bytes] = frame
    silence: bytes = KEEP_ALIVE
    end: bytes = DONE
    failed: Callable[[ArmillaryError], list[Any]] = lambda error: [error_body(error)]


UNNAMED = Framing()
"""Events are plain data, and `[DONE]` ends them: chat and completions."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` to its end in the task that asks, or cancel it as soon as the client goes away.

    Raises:
        Disconnected: the client went away first.
    """
    working = asyncio.current_task()
    assert working is not None  # noqa: S101  a coroutine runs in a task
    left = False

    def leave(watching: asyncio.Task[None]) -> None:
        nonlocal left
        left = True
        working.cancel()

    watching = asyncio.ensure_future(_gone(receive))
    watching.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if left and working.uncancel() == 0:
            raise Disconnected from None
        raise
    finally:
        watching.remove_done_callback(leave)
        watching.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Streams what `events` yields, and ends it whatever happens.

    The status is sent with the first events, so a request that fails before it has any gets a proper error
    response. Backlog does not build up here: nothing is taken from `events` while the client's socket is full.

    Args:
        events: lists of JSON objects; an empty list means a silence, to be filled with a comment. It is closed
            when the stream ends for any reason, and that is where its requests are cancelled.
        render: how an error looks as a response.
        patience_s: seconds that one write may wait for the client to read.
        on_slow_reader: called when a stream is cut for that reason.
        on_end: called once, when the stream is over in whatever way.
        framing: how the dialect writes it.
        over: whether `events` yields the rest without waiting, so that it goes out together with the end.
    """

    def __init__(
        self,
        events: AsyncGenerator[list[Any], None],
        render: Callable[[ArmillaryError], Response],
        patience_s: float,
        on_slow_reader: Callable[[], None],
        on_end: Callable[[], None],
        framing: Framing = UNNAMED,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._events = events
        self._render = render
        self._patience_s = patience_s
        self._on_slow_reader = on_slow_reader
        self._on_end = on_end
        self._framing = framing
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._write(scope, receive, send))
        finally:
            self._on_end()

    async def _write(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        framing = self._framing
        rest, end = b"", framing.end
        with _Pen(send, self._patience_s) as pen:
            async with aclosing(self._events):
                try:
                    async for events in self._events:
                        if not started:
                            started = True
                            await pen.send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                        body = b"".join(map(framing.frame, events))
                        if self._over():
                            rest += body
                            continue
                        body = body or framing.silence
                        await pen.send({"type": "http.response.body", "body": body, "more_body": True})
                except SlowReader:
                    self._on_slow_reader()
                    raise
                except Exception as failure:
                    if isinstance(failure, ArmillaryError):
                        error = failure
                    else:
                        log.exception("a stream failed")
                        error = ArmillaryError(Code.ENGINE_FAILED, "the server failed on this request")
                    if not started:
                        await self._render(error)(scope, receive, send)
                        return
                    end = b"".join(map(framing.frame, framing.failed(error))) + framing.end
            await pen.send({"type": "http.response.body", "body": rest + end, "more_body": False})


class _Pen:
    """Writes to one client, in the task that made it, and has so much patience with each write."""

    def __init__(self, send: Send, patience_s: float) -> None:
        self._send = send
        self._patience_s = patience_s
        self._now = asyncio.get_running_loop().time
        self._task = asyncio.current_task()
        self._slow = False

    def __enter__(self) -> _Pen:
        self._alarm = Alarm(self._give_up)
        return self

    def __exit__(self, *_: object) -> None:
        self._alarm.end()

    def _give_up(self) -> None:
        self._slow = True
        assert self._task is not None  # noqa: S101  a coroutine runs in a task
        self._task.cancel()

    async def send(self, message: dict[str, Any]) -> None:
        """Send a message.

        Raises:
            SlowReader: the client did not take it in time.
        """
        self._alarm.set(self._now() + self._patience_s)
        try:
            await self._send(message)
        except asyncio.CancelledError:
            if self._slow and self._task is not None and self._task.uncancel() == 0:
                raise SlowReader from None
            raise
        self._alarm.clear()
