"""An event loop whose clock jumps instead of waiting, and servers that live in it: every latency is known exactly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import httpx

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Sleeping moves the clock; nothing takes time unless it sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        really = self._selector.select

        def select(timeout: float | None = None) -> Any:
            ready = really(0)
            if ready:
                return ready
            if timeout is None:
                raise RuntimeError("everything waits for something that will not happen")
            self.now += max(0.0, timeout)
            return ready

        self._selector.select = select

    def time(self) -> float:
        return self.now


def run(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in virtual time."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(make())
    finally:
        loop.close()


def now() -> float:
    return asyncio.get_running_loop().time()


def block(seconds: float) -> None:
    """What a busy process does: time passes and the loop does not run."""
    asyncio.get_running_loop().now += seconds  # type: ignore[attr-defined]


class Body(httpx.AsyncByteStream):
    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self.chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self.chunks:
            yield chunk


Handler = Callable[[dict[str, Any]], Awaitable[httpx.Response]]


class FakeServer(httpx.AsyncBaseTransport):
    """Answers each request's JSON body with what `handler` makes of it; keeps (when, body) of each."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.seen: list[tuple[float, dict[str, Any]]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.seen.append((now(), body))
        return await self.handler(body)


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def piece(text: str, finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish}]})


def usage(prompt: int, output: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": output}})


DONE = b"data: [DONE]\n\n"


def streamed(chunks: AsyncIterator[bytes]) -> httpx.Response:
    return httpx.Response(200, stream=Body(chunks))


def steady_answer(first: float, gap: float) -> Handler:
    """`max_tokens` tokens: the first after `first` seconds, each further one after `gap`."""

    async def handler(body: dict[str, Any]) -> httpx.Response:
        async def chunks() -> AsyncIterator[bytes]:
            count = body["max_tokens"]
            await asyncio.sleep(first)
            for index in range(count):
                if index:
                    await asyncio.sleep(gap)
                yield piece("x", "length" if index == count - 1 else None)
            yield usage(len(str(body["prompt"]).split()), count)
            yield DONE

        return streamed(chunks())

    return handler
