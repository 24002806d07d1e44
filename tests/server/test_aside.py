"""Work beside the event loop: whatever ends it is told, and nobody waits for it in vain."""

from __future__ import annotations

import asyncio
import threading

import pytest

from armillary.server.aside import aside


def test_what_it_returns_and_whatever_it_raises_is_told() -> None:
    class Panic(BaseException):
        """What native libraries raise is often no `Exception`."""

    def fail(error: BaseException) -> None:
        raise error

    async def ask() -> None:
        assert await aside(lambda: 3, "three") == 3
        with pytest.raises(ValueError, match="no"):
            await aside(lambda: fail(ValueError("no")), "fails")
        with pytest.raises(RuntimeError, match="Panic: at the bottom"):
            await aside(lambda: fail(Panic("at the bottom")), "panics")

    asyncio.run(ask())


def test_who_stops_waiting_is_not_disturbed_and_the_loop_can_end_first() -> None:
    gate, ended = threading.Event(), threading.Event()

    def work() -> None:
        gate.wait(30)
        ended.set()

    async def ask() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(aside(work, "long"), 0.01)
        aside(work, "longer")

    asyncio.run(ask())
    gate.set()
    assert ended.wait(30)
