"""Every part fails once: the request it belongs to ends with an error, or the server does, and neither in silence."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from armillary.deployment import ServerSettings
from armillary.errors import ArmillaryError, Code
from server.harness import NAME, Running, ScriptedExecutor, torch_executor, write_model
from survival.faulty import Faulty, generating, once

ASK: dict[str, Any] = {"model": NAME, "prompt": "x", "max_tokens": 12, "temperature": 0}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path, Faulty(ScriptedExecutor()), ServerSettings(port=0, drain_s=2.0, stall_s=0.5))
    running.wait()
    yield running
    running.executor.release.set()
    running.stop()


def healthy(server: Running) -> None:
    """The next request works, nothing is left over, and the probes say so."""
    assert server.post("/v1/completions", ASK).status_code == 200
    server.quiet(5)
    assert server.get("/health").status_code == 200


@pytest.mark.parametrize("fault", ["raise", "nan", "short"])
@pytest.mark.parametrize("when", [lambda step: True, generating], ids=["at the prompt", "in the answer"])
def test_a_step_that_fails_ends_its_requests_with_an_error(server: Running, fault: str, when: Any) -> None:
    server.executor.plan = once(fault, when)
    reply = server.post("/v1/completions", ASK)
    assert server.executor.happened == [fault]
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "engine_failed" and reply.json()["error"]["message"]
    healthy(server)


@pytest.mark.parametrize("fault", ["raise", "nan"])
def test_a_stream_says_so_in_its_midst(server: Running, fault: str) -> None:
    server.executor.plan = once(fault, generating)
    with pytest.raises(openai.APIError):
        for _ in server.client().completions.create(**ASK, stream=True):
            pass
    assert server.executor.happened == [fault]
    healthy(server)


def test_nothing_but_the_step_is_lost(server: Running) -> None:
    """Of requests that come and go, those of the failing steps fail, and every other one is answered."""
    failures = [0]

    def plan(step: Any) -> str | None:
        failures[0] += 1
        return "raise" if failures[0] % 13 == 0 else None

    server.executor.plan = plan
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda _: server.post("/v1/completions", ASK), range(60)))
    statuses = {reply.status_code for reply in replies}
    assert statuses == {200, 500}
    whole = {reply.json()["choices"][0]["text"] for reply in replies if reply.status_code == 200}
    assert len(whole) == 1
    server.executor.plan = lambda step: None
    healthy(server)


def test_a_step_that_is_slow_is_waited_for(server: Running) -> None:
    server.executor.plan = once(0.3, generating)
    assert server.post("/v1/completions", ASK).status_code == 200
    assert server.executor.happened == [0.3]
    healthy(server)


def test_a_step_that_hangs_turns_health_and_back(server: Running) -> None:
    server.executor.plan = once("hang", generating)
    with ThreadPoolExecutor(1) as threads:
        reply = threads.submit(server.post, "/v1/completions", ASK)
        server.wait("/health", 503)
        said = server.get("/health").json()["error"]["message"]
        assert "no step" in said, said
        assert not reply.done()
        server.executor.release.set()
        assert reply.result(60).status_code == 200
    server.wait("/health", 200)
    healthy(server)


def test_a_server_whose_step_hangs_ends_with_an_error_when_told_to_end(tmp_path: Path) -> None:
    running = Running(tmp_path, Faulty(ScriptedExecutor()), ServerSettings(port=0, drain_s=2.0, stall_s=0.5))
    running.wait()
    running.executor.plan = once("hang")
    with ThreadPoolExecutor(1) as threads:
        reply = threads.submit(running.post, "/v1/completions", ASK)
        running.wait("/health", 503)
        running.stop()
        assert reply.result(60).status_code >= 500
    assert isinstance(running.error, ArmillaryError), "a process that leaves a request behind must not exit with 0"
    running.executor.release.set()


def test_an_engine_that_dies_ends_the_server_with_an_error(tmp_path: Path) -> None:
    running = Running(tmp_path, Faulty(ScriptedExecutor()))
    running.wait()
    running.executor.plan = once("die", generating)
    try:
        status = running.post("/v1/completions", ASK).status_code
    except httpx.TransportError:
        status = 503
    assert status >= 500
    running._thread.join(60)
    assert isinstance(running.error, ArmillaryError) and running.error.code is Code.ENGINE_FAILED
    assert "gone" in running.error.message


def test_numbers_that_are_none_fail_their_own_request_alone(tmp_path: Path) -> None:
    """A token for which the model computes no numbers, in one of many requests that are computed together."""
    write_model(tmp_path)
    executor = torch_executor(tmp_path, 64, 8)
    compute = executor.compute.hidden

    def broken(tokens: list[int], entries: Any) -> tuple[Any, bool]:
        hidden, _ = compute(tokens, entries)
        hidden[np.array(tokens) == ord("!")] = float("nan")
        return hidden, bool(np.isfinite(hidden).all())

    executor.compute.hidden = broken
    running = Running(tmp_path, Faulty(executor), num_blocks=64, block_size=8)
    running.wait()
    try:
        with ThreadPoolExecutor(8) as threads:
            prompts = ["!" if number % 4 == 0 else "fine" for number in range(24)]
            replies = list(threads.map(lambda p: running.post("/v1/completions", {**ASK, "prompt": p}), prompts))
        for prompt, reply in zip(prompts, replies, strict=True):
            assert reply.status_code == (500 if prompt == "!" else 200), reply.text
        texts = {reply.json()["choices"][0]["text"] for reply in replies if reply.status_code == 200}
        assert len(texts) == 1, "those that failed disturbed nobody's numbers"
        running.quiet(5)
    finally:
        running.stop()


def test_a_tokenizer_that_raises(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the way in, its request gets an error; on the way out, likewise; the server goes on."""
    from armillary.models.tokenizer import Tokenizer

    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("the tokenizer is broken")

    for name in ("encode", "decode", "token_bytes"):
        if not hasattr(Tokenizer, name):
            continue
        with monkeypatch.context() as patch:
            patch.setattr(Tokenizer, name, broken)
            for stream in (False, True):
                reply = server.post("/v1/completions", {**ASK, "stream": stream})
                # A part that was not needed for this request is no fault of it.
                assert reply.status_code in (200, 500), reply.text
                if reply.status_code == 500:
                    assert reply.json()["error"]["message"]
            if name == "encode":
                assert reply.status_code == 500
        healthy(server)


def test_faults_while_others_come_and_go(server: Running) -> None:
    """All faults at random moments under load: every request ends, and the books are even."""
    count = [0]
    kinds: list[str | float] = ["raise", "nan", "short", 0.02]

    def plan(step: Any) -> str | float | None:
        count[0] += 1
        return kinds[count[0] // 7 % len(kinds)] if count[0] % 7 == 0 else None

    server.executor.plan = plan
    ended: list[str] = []
    lock = threading.Lock()

    def ask(number: int) -> None:
        body = {**ASK, "n": 1 + number % 3, "stream": number % 2 == 0, "prompt": "x" * (1 + number % 40)}
        reply = server.post("/v1/completions", body)
        outcome = "error" if reply.status_code == 500 or '"error"' in reply.text else "ok"
        assert reply.status_code in (200, 500)
        if reply.status_code == 200 and body["stream"]:
            assert reply.text.endswith("data: [DONE]\n\n")
        with lock:
            ended.append(outcome)

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(ask, range(120)))
    assert len(ended) == 120 and set(ended) == {"ok", "error"}
    assert set(server.executor.happened) == set(kinds)
    server.executor.plan = lambda step: None
    healthy(server)
