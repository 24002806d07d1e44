"""Loops that wake up in time sleep for less than a millisecond where they are told to, and do all that others do."""

from __future__ import annotations

import asyncio
import selectors
import time

import pytest

from armillary.measure import punctual
from armillary.measure.punctual import run_punctually


async def dozing() -> float:
    """Seconds that a hundred sleeps of a fifth of a millisecond take."""
    began = time.perf_counter()
    for _ in range(100):
        await asyncio.sleep(2e-4)
    return time.perf_counter() - began


@pytest.mark.skipif(not hasattr(selectors, "EpollSelector"), reason="only an epoll rounds up")
def test_it_wakes_up_sooner_than_others_and_not_too_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, others = run_punctually(dozing()), asyncio.run(dozing())
    assert 0.02 <= seconds < 0.7 * others
    monkeypatch.setattr(punctual, "FILES", 0)  # a file that `select` cannot watch
    assert run_punctually(dozing()) >= 0.02


def test_what_comes_in_ends_a_sleep() -> None:
    async def talk() -> bytes:
        async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read(5))
            writer.close()

        server = await asyncio.start_server(reply, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello")
        found = await asyncio.wait_for(reader.read(), 30)
        writer.close()
        server.close()
        return found

    began = time.monotonic()
    assert run_punctually(talk()) == b"hello" and time.monotonic() - began < 20


def test_an_error_is_told() -> None:
    async def wrong() -> None:
        raise ValueError("so")

    with pytest.raises(ValueError, match="so"):
        run_punctually(wrong())
