"""The timer that is put off: it rings at the moment that was set last, once, and not when it is cleared."""

from __future__ import annotations

import asyncio

from armillary.server.alarm import Alarm


def rings(script: list[tuple[str, float]]) -> list[float]:
    """When an alarm rings that is set (`set`, at), cleared or ended at once, in order; until the clock says 100.

    The loop's clock is virtual.
    """
    loop = asyncio.SelectorEventLoop()
    clock = 0.0
    loop.time = lambda: clock  # type: ignore[method-assign]
    rung: list[float] = []

    async def until(moment: float) -> None:
        nonlocal clock
        while clock < moment:
            clock += 1.0
            for _ in range(2):  # timers that are due run behind what was ready before
                await asyncio.sleep(0)

    async def play() -> None:
        alarm = Alarm(lambda: rung.append(clock))
        for word, at in script:
            if word == "set":
                alarm.set(at)
            elif word == "wait":
                await until(at)
            else:
                getattr(alarm, word)()
        await until(100.0)

    try:
        loop.run_until_complete(play())
    finally:
        loop.close()
    return rung


def test_it_rings_once_at_the_moment_that_was_set_last() -> None:
    assert rings([("set", 10.0)]) == [10.0]
    assert rings([("set", 10.0), ("set", 30.0)]) == [30.0]
    assert rings([("set", 30.0), ("set", 10.0)]) == [10.0]
    assert rings([("set", 10.0), ("wait", 5.0), ("set", 15.0), ("wait", 12.0), ("set", 22.0)]) == [22.0]


def test_it_can_be_set_again_after_it_rang() -> None:
    assert rings([("set", 10.0), ("wait", 20.0), ("set", 30.0)]) == [10.0, 30.0]


def test_cleared_or_ended_it_is_silent_until_it_is_set_again() -> None:
    assert rings([("set", 10.0), ("clear", 0.0)]) == []
    assert rings([("set", 10.0), ("end", 0.0)]) == []
    assert rings([("set", 10.0), ("clear", 0.0), ("set", 20.0)]) == [20.0]
    assert rings([("set", 10.0), ("clear", 0.0), ("wait", 20.0), ("set", 30.0)]) == [30.0]
    assert rings([("set", 10.0), ("end", 0.0), ("wait", 20.0), ("set", 30.0)]) == [30.0]


def test_ended_it_leaves_no_timer_behind() -> None:
    async def left() -> int:
        alarm = Alarm(lambda: None)
        alarm.set(asyncio.get_running_loop().time() + 1000.0)
        alarm.end()
        loop = asyncio.get_running_loop()
        return sum(not timer.cancelled() for timer in loop._scheduled)  # type: ignore[attr-defined]

    assert asyncio.run(left()) == 0
