"""Batches for vectors and scores without a server: what is in flight at once, and what is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.datastructures import Headers

from armillary.core.load import Share
from armillary.core.request import FinishReason, Request
from armillary.core.step import Event
from armillary.errors import ArmillaryError, Code
from armillary.server import pooled
from armillary.server.admission import Caller, Limits
from armillary.server.exchange import Exchange, current
from armillary.server.pooled import Batch, Pooling


class Engine:
    """Takes requests, and answers those that it is told to."""

    alive, failure = True, None

    def __init__(self) -> None:
        self.taken: list[tuple[Request, Callable[[list[Event]], None]]] = []
        self.cancelled: list[str] = []

    def waiting(self, owner: str | None = None) -> Share:
        return Share()

    def seconds_to_work_off(self) -> float | None:
        return None

    def submit_soon(self, request: Request, on_events: Callable[[list[Event]], None]) -> Future[None]:
        self.taken.append((request, on_events))
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def answer(self, place: int) -> None:
        request, on_events = self.taken[place]
        on_events([Event(request.id, 0, None, FinishReason.STOP, prompt_detail="vector")])


@contextmanager
def asked_by(caller: Caller) -> Any:
    exchange = Exchange("r", headers=Headers({}))
    exchange.caller = caller
    token = current.set(exchange)
    try:
        yield
    finally:
        current.reset(token)


def pooling(engine: Engine, requests: list[Request]) -> Pooling:
    served: Any = SimpleNamespace(
        worker=engine,
        limits=SimpleNamespace(max_running=4),
        clock=lambda: 100.0,
        mailbox=SimpleNamespace(post=lambda deliver, events: deliver(events, 0.0)),
    )
    quiet = SimpleNamespace(fail=lambda *a, **k: None, count=lambda *a: None, end=lambda *a: None, cached_tokens=0)
    quiet.first_token = lambda at: None
    tally: Any = quiet
    return Pooling(served, Batch("b", requests, len(requests), lambda found: found), tally)


def requests(count: int, expires: float | None = None) -> list[Request]:
    return [Request(f"r{i}", (1,) * 10, 0, expires=expires) for i in range(count)]


@pytest.mark.parametrize(("answered", "left"), [(0, 1000), (3, 1000 - 200 + 90)])
def test_what_an_engine_that_hangs_has_not_taken_is_given_back(
    monkeypatch: pytest.MonkeyPatch, answered: int, left: int
) -> None:
    monkeypatch.setattr(pooled, "OVERDUE_S", 0.0)
    caller, engine = Caller("a", Limits(tokens_per_minute=1000), lambda: 0.0), Engine()

    async def ask() -> None:
        with asked_by(caller):
            running = asyncio.ensure_future(pooling(engine, requests(20, expires=100.2)).run())
            await asyncio.sleep(0)
            assert caller._tokens is not None and caller._tokens.remaining == 800
            for place in range(answered):
                engine.answer(place)
            with pytest.raises(ArmillaryError) as caught:
                await running
            assert caught.value.code is Code.DEADLINE

    asyncio.run(ask())
    assert len(engine.taken) == 8 + answered and caller._tokens is not None
    assert caller._tokens.remaining == left


def test_no_more_is_in_flight_than_a_key_may_have_waiting() -> None:
    caller, engine = Caller("a", Limits(max_waiting=2)), Engine()

    async def ask() -> None:
        with asked_by(caller):
            running = asyncio.ensure_future(pooling(engine, requests(7)).run())
            for place in range(7):
                for _ in range(3):
                    await asyncio.sleep(0)
                assert len(engine.taken) == min(place + 2, 7)
                engine.answer(place)
            assert await running == ["vector"] * 7

    asyncio.run(ask())
