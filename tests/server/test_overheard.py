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
from armillary.measure.overheard import MOST, overheard
from armillary.measure.workload import Workload
from measure_virtual_time import run
from server.harness import NAME, Running, ScriptedExecutor

WORDS = "the ferry goes when the wind turns and the harbour bell rings twice before the tide comes in "


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path, ScriptedExecutor(step_s=0.005), num_blocks=400, max_context=400)
    running.wait()
    yield running
    running.stop()


def observe(*arguments: str) -> Any:
    return CliRunner().invoke(build_app(["observe", *arguments]), ["observe", *arguments])


def test_what_comes_meanwhile_is_written_down(server: Running, tmp_path: Path) -> None:
    client = server.client()
    ask = {"model": NAME, "temperature": 0, "extra_body": {"ignore_eos": True}}
    client.completions.create(prompt=WORDS, max_tokens=3, **ask)  # before: not for the file
    file = tmp_path / "traffic.jsonl"
    results = []
    watcher = threading.Thread(
        target=lambda: results.append(observe(server.url, str(file), "--seconds", "1.5", "--model", NAME))
    )
    watcher.start()
    time.sleep(0.5)
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
    assert items[0].arrival == 0.0 and 0.19 < (items[1].arrival or 0.0) < 0.6
    assert items[0].prefix_tokens > 0, "the one before began alike"
    assert {name for item in items for name, _ in item.prefix} == {"found in the cache"}


def test_what_cannot_be_observed_is_said(server: Running, tmp_path: Path) -> None:
    file = str(tmp_path / "traffic.jsonl")
    for arguments, code, said in (
        ([server.url, file, "--seconds", "0.3"], Code.INVALID_REQUEST, "observe for longer"),
        ([server.url, file, "--last", "3"], Code.INVALID_REQUEST, "--last must be left out"),
        (["journal.jsonl", file, "--seconds", "3"], Code.INVALID_REQUEST, "--seconds must come with the URL"),
        (["http://127.0.0.1:9", file], Code.UNREACHABLE, "a server of Armillary"),
        ([server.url + "/nothing", file], Code.UNREACHABLE, "404"),
    ):
        error = observe(*arguments).exception
        assert isinstance(error, ArmillaryError) and error.code is code and said in str(error)
        assert not Path(file).exists()


class Forgetful(httpx.AsyncBaseTransport):
    """A server that has a thousand other requests whenever it is asked."""

    def __init__(self, overlap: int) -> None:
        self._next, self._overlap = 0, overlap

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        cards = [
            {"request_id": str(n), "created": n / 4000, "state": "ended", "finish_reason": "length", "prompts": 1,
             "choices": 1, "prompt_tokens": 9, "cached_tokens": 0, "completion_tokens": 2}
            for n in range(self._next, self._next + MOST)
        ]  # fmt: skip
        self._next += MOST - self._overlap
        await asyncio.sleep(0)
        return httpx.Response(200, json={"data": cards})


def test_requests_that_a_server_forgets_are_not_left_out_in_silence() -> None:
    found = run(lambda: overheard("http://fake", 2.0, transport=Forgetful(overlap=1)))
    assert len(found) == 8 * (MOST - 1), "eight looks in two seconds"
    with pytest.raises(ArmillaryError, match=r"at most 4,000 requests/s.*journal"):
        run(lambda: overheard("http://fake", 2.0, transport=Forgetful(overlap=0)))
