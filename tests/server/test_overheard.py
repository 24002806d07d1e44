"""Observing a server by its URL: what came meanwhile is written down as it was asked, and nothing else."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from armillary.cli.main import build_app
from armillary.errors import ArmillaryError, Code
from armillary.measure import overheard as module
from armillary.measure.overheard import MOST, overheard
from armillary.measure.workload import Workload
from armillary.server.requests import ENDED_KEPT
from measure_virtual_time import now, run
from server.harness import NAME, Running, ScriptedExecutor

WORDS = "the ferry goes when the wind turns and the harbour bell rings twice before the tide comes in "


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path, ScriptedExecutor(step_s=0.01), num_blocks=400, max_context=400)
    running.wait()
    yield running
    running.stop()


def observe(*arguments: str) -> Any:
    return CliRunner().invoke(build_app(["observe", *arguments]), ["observe", *arguments])


def test_what_comes_meanwhile_is_written_down(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, looked, look = server.client(), threading.Event(), module._look

    async def looking(*arguments: Any) -> Any:
        found = await look(*arguments)
        looked.set()
        return found

    monkeypatch.setattr(module, "_look", looking)
    ask = {"model": NAME, "temperature": 0, "extra_body": {"ignore_eos": True}}
    client.completions.create(prompt=WORDS, max_tokens=3, **ask)  # before: not for the file
    file = tmp_path / "traffic.jsonl"
    results = []
    watcher = threading.Thread(
        target=lambda: results.append(observe(server.url, str(file), "--seconds", "2.5", "--model", NAME))
    )
    watcher.start()
    assert looked.wait(60)
    first = client.completions.create(prompt=WORDS + "one", max_tokens=7, **ask)
    time.sleep(0.2)
    client.completions.create(prompt=["a", WORDS], max_tokens=5, n=2, **ask)
    with client.completions.create(prompt=WORDS, max_tokens=299, stream=True, **ask) as left:
        next(iter(left))
    client.completions.create(prompt=WORDS, max_tokens=300, **ask)  # ends after the time
    watcher.join()
    assert results[0].exit_code == 0, results[0].output
    items = Workload.read(file).items
    assert [item.output_tokens for item in items] == [7, 5, 5, 5, 5, 300], "what was left is no part of it"
    assert first.usage is not None and items[0].prompt_tokens == first.usage.prompt_tokens
    assert items[0].arrival == 0.0 and (items[1].arrival or 0.0) > 0.19
    assert items[0].prefix_tokens > 0, "the one before began alike"
    assert {name for item in items for name, _ in item.prefix} == {"found in the cache"}


def test_what_cannot_be_observed_is_said(server: Running, tmp_path: Path) -> None:
    file = str(tmp_path / "traffic.jsonl")
    for arguments, code, said in (
        ([server.url, file, "--seconds", "0.3"], Code.INVALID_REQUEST, "observe for longer"),
        ([server.url, file, "--last", "3"], Code.INVALID_REQUEST, "--last must be left out"),
        (["journal.jsonl", file, "--seconds", "3"], Code.INVALID_REQUEST, "--seconds must come with the URL"),
        (["http://127.0.0.1:9", file], Code.UNREACHABLE, "a server of this version"),
        ([server.url + "/nothing", file], Code.UNREACHABLE, "404"),
    ):
        error = observe(*arguments).exception
        assert isinstance(error, ArmillaryError) and error.code is code and said in str(error)
        assert not Path(file).exists()


class Fake(httpx.AsyncBaseTransport):
    """A server to which so many requests a second come, all answered at once, in virtual time; one stays in flight.

    Args:
        fails: at which looks it answers 503.
        anew: the look at which it has been started anew.
    """

    def __init__(self, rate: int, fails: frozenset[int] = frozenset(), anew: int = -1, **changes: Any) -> None:
        self._rate, self._fails, self._anew, self._changes = rate, fails, anew, changes
        self._looks = -1

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._looks += 1
        if self._looks in self._fails:
            return httpx.Response(503)
        time, ended = now(), round((now() - 1000.0) * self._rate)
        if request.url.params["state"] == "live":
            numbers = [-1]
        else:
            numbers = list(range(max(0, ended - MOST), ended))
        card = {"prompts": 1, "choices": 1, "prompt_tokens": 9, "cached_tokens": 0, "completion_tokens": 2}
        cards = [
            {"request_id": str(n), "created": 1000.0 + n / self._rate, "finish_reason": "length" if n >= 0 else None}
            | card
            | self._changes
            for n in numbers
        ]
        told = 0 if self._looks == self._anew else ended
        return httpx.Response(200, json={"time": time, "ended": told, "data": cards})


def seen(server: Fake, seconds: float = 2.0) -> Workload:
    return run(lambda: overheard("http://fake", seconds, transport=server))


def test_requests_that_a_server_forgets_are_not_left_out_in_silence() -> None:
    assert MOST == ENDED_KEPT
    assert len(seen(Fake(1999))) == 2 * 1999
    with pytest.raises(ArmillaryError, match=r"at most 2,000 requests/s.* given 1050 within 0.5 s.*journal"):
        seen(Fake(2100))


def test_a_server_may_be_away_for_a_while_but_not_begin_anew() -> None:
    assert len(seen(Fake(100, frozenset({2, 3, 5})))) == 200
    with pytest.raises(ArmillaryError, match="503"):
        seen(Fake(100, frozenset(range(3, 1000))), seconds=100.0)
    with pytest.raises(ArmillaryError, match="503"):
        seen(Fake(100, frozenset({0})))
    with pytest.raises(ArmillaryError, match="started anew"):
        seen(Fake(100, anew=4))


def test_servers_that_tell_something_else_are_refused_at_once() -> None:
    for changes in ({"prompts": "many"}, {"created": "yesterday"}, {"created": None}):
        with pytest.raises(ArmillaryError, match="this version of Armillary"):
            run(lambda changes=changes: _after_a_second(changes))  # type: ignore[misc]
    with pytest.raises(ArmillaryError, match="InvalidURL"):
        run(lambda: overheard("http://[::1", 1.0))
    bare = seen(Fake(10, prompts=None, choices=None, prompt_tokens=None, cached_tokens=None)).items
    assert {(item.prompt_tokens, item.output_tokens) for item in bare} == {(1, 2)}


async def _after_a_second(changes: dict[str, Any]) -> Workload:
    await asyncio.sleep(1.0)  # so that there are cards
    return await overheard("http://fake", 1.0, transport=Fake(10, **changes))
