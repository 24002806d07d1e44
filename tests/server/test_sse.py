"""One stream of events over ASGI, without a server: what is written at once, and what ends it early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.responses import Response

from armillary.server.body import Disconnected
from armillary.server.sse import DONE, EventStream, SlowReader


class Client:
    """Takes what is sent, as quickly as it is told to, and may go away."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.takes_s = takes_s
        self.gone = asyncio.Event()
        self.bodies: list[bytes] = []
        self.ended = self.slow = 0
        self.closed = False

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(self.takes_s)
            self.bodies.append(message["body"])

    async def events(
        self, numbers: list[int], failure: Exception | None, wait: bool
    ) -> AsyncGenerator[list[Any], None]:
        try:
            for number in numbers:
                self.latest = number
                yield [number]
            if wait:
                await asyncio.Event().wait()
            if failure is not None:
                raise failure
        finally:
            self.closed = True

    async def read(
        self, numbers: list[int], last: int = 100, failure: Exception | None = None, wait: bool = False
    ) -> None:
        """Be sent a stream of numbers, which from `last` on waits for nothing; tidied up however it ends."""

        def count_slow() -> None:
            self.slow += 1

        def count_end() -> None:
            self.ended += 1

        stream = EventStream(
            self.events(numbers, failure, wait),
            render=lambda error: Response(),
            patience_s=0.05,
            on_slow_reader=count_slow,
            on_end=count_end,
            over=lambda: self.latest >= last,
        )
        before = asyncio.all_tasks()
        try:
            await stream({"type": "http"}, self.receive, self.send)
        finally:
            await asyncio.sleep(0)
            assert self.closed and self.ended == 1 and asyncio.all_tasks() == before


def uncancelled() -> bool:
    """Whether the running task may go on as if nothing had been cancelled in it."""
    task = asyncio.current_task()
    return task is not None and not task.cancelling()


def test_what_follows_the_last_token_is_one_write_with_it() -> None:
    async def run() -> None:
        client = Client()
        await client.read([1, 2, 3, 4], last=3)
        assert client.bodies == [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\ndata: 4\n\n" + DONE]

    asyncio.run(run())


def test_a_failure_behind_the_last_token_keeps_what_came_before_it() -> None:
    async def run() -> None:
        client = Client()
        await client.read([1, 2], last=2, failure=ValueError("broken"))
        assert client.bodies[0] == b"data: 1\n\n" and len(client.bodies) == 2
        assert client.bodies[1].startswith(b'data: 2\n\ndata: {"error"') and client.bodies[1].endswith(DONE)

    asyncio.run(run())


def test_a_client_that_takes_nothing_is_cut() -> None:
    async def run() -> None:
        client = Client(takes_s=60.0)
        with pytest.raises(SlowReader):
            await client.read([1, 2])
        assert client.slow == 1 and client.bodies == [] and uncancelled()

    asyncio.run(run())


def test_a_client_that_leaves_ends_its_stream() -> None:
    async def run() -> None:
        client = Client()
        asyncio.get_running_loop().call_later(0.02, client.gone.set)
        with pytest.raises(Disconnected):
            await client.read([1], wait=True)
        assert client.slow == 0 and client.bodies == [b"data: 1\n\n"] and uncancelled()

    asyncio.run(run())


def test_a_stream_that_is_cancelled_is_neither() -> None:
    async def run() -> None:
        client = Client()
        task = asyncio.ensure_future(client.read([1], wait=True))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.slow == 0 and client.ended == 1 and client.closed

    asyncio.run(run())
