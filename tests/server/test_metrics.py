"""Metrics count what happened: where requests were left, why they were refused or failed, what steps were made of."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from armillary.server.metrics import LEAVINGS, STEP_KINDS
from server.harness import NAME, Running, ScriptedExecutor

ASK: dict[str, Any] = {
    "model": NAME,
    "messages": [{"role": "user", "content": "Where?"}],
    "max_tokens": 200,
    "temperature": 0,
}


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One sequence runs at a time; prompts are computed two tokens a step, and steps are slow."""
    running = Running(
        tmp_path_factory.mktemp("model"),
        ScriptedExecutor(step_s=0.01),
        max_running=1,
        max_step_tokens=2,
        max_waiting=2,
    )
    running.wait()
    yield running
    running.stop()


def send(server: Running, body: dict[str, Any], cut: int = 0) -> socket.socket:
    """A request of which the last `cut` bytes are not sent."""
    raw = json.dumps(body).encode()
    host, port = server.url.removeprefix("http://").split(":")
    wire = socket.create_connection((host, int(port)))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(raw)}\r\n\r\n"
    wire.sendall(head.encode() + raw[: len(raw) - cut])
    return wire


def until(server: Running, name: str, least: float) -> dict[str, float]:
    end = time.monotonic() + 120
    while (metrics := server.metrics()).get(name, 0) < least:
        assert time.monotonic() < end, f"{name} must reach {least}, given {metrics.get(name)}"
        time.sleep(0.01)
    return metrics


def left(state: str) -> str:
    return f'armillary_cancellations_total{{state="{state}"}}'


def test_requests_are_counted_where_they_are_left(server: Running) -> None:
    wire = send(server, ASK, cut=5)
    until(server, "armillary_requests_in_flight", 1)
    wire.close()
    until(server, left("received"), 1)

    gate = threading.Event()
    server.executor.fault = lambda step: gate.wait(60) and None
    wires = []
    for number in (1, 2):  # the first is in its first step, the second behind it
        wires.append(send(server, ASK))
        until(server, "armillary_sequences_running", 1)
        while sum(each["state"] == "waiting" for each in server.get("/v1/requests").json()["data"]) < number:
            time.sleep(0.01)
    wires[1].close()
    until(server, left("queued"), 1)
    wires[0].close()
    until(server, left("prefill"), 1)
    gate.set()
    server.quiet(30)

    wire = send(server, ASK)
    until(server, "armillary_generated_tokens_total", 2)
    wire.close()
    metrics = until(server, left("decode"), 1)
    assert [metrics[left(state)] for state in LEAVINGS] == [1, 1, 1, 1]
    assert metrics['armillary_requests_total{endpoint="chat",finish_reason="cancelled"}'] == 4
    server.quiet(30)


def test_refusals_and_failures_are_told_apart_by_their_codes(server: Running) -> None:
    client = server.client()
    for options in ({"top_p": 7}, {"model": "other"}, {"max_tokens": 10_000}, {"messages": []}):
        with pytest.raises(openai.APIStatusError):
            client.chat.completions.create(**{**ASK, **options})
    server.executor.fault = lambda step: 1 / 0
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**ASK)
    metrics = server.metrics()
    refused = {key: value for key, value in metrics.items() if key.startswith("armillary_rejected_total")}
    assert refused == {
        'armillary_rejected_total{reason="invalid_request"}': 2,
        'armillary_rejected_total{reason="model_not_found"}': 1,
        'armillary_rejected_total{reason="context_length_exceeded"}': 1,
    }
    assert metrics['armillary_errors_total{code="engine_failed"}'] == 1
    assert metrics['armillary_requests_total{endpoint="chat",finish_reason="refused"}'] == sum(refused.values())
    assert metrics['armillary_requests_total{endpoint="chat",finish_reason="error"}'] == 1


def test_lengths_and_kinds_of_steps_add_up(tmp_path_factory: pytest.TempPathFactory) -> None:
    executor = ScriptedExecutor()
    running = Running(
        tmp_path_factory.mktemp("model"), executor, max_chunk_tokens=8, max_step_tokens=24, max_running=20
    )
    gate = threading.Event()
    executor.fault = lambda step: gate.wait(60) and None
    try:
        running.wait()
        prompt = completion = 0

        def ask(number: int) -> None:
            nonlocal prompt, completion
            messages = [{"role": "user", "content": "why " * (1 + 10 * number)}]
            options = {"messages": messages, "max_tokens": 10 + 5 * number, "n": 2}
            answer = running.client().chat.completions.create(**{**ASK, **options})
            assert answer.usage is not None
            prompt += answer.usage.prompt_tokens
            completion += answer.usage.completion_tokens

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        until(running, "armillary_requests_in_flight", 6)
        gate.set()  # all together: short prompts are complete before long ones
        for thread in threads:
            thread.join()
        metrics = running.metrics()
        assert metrics["armillary_request_prompt_tokens_sum"] == metrics["armillary_prompt_tokens_total"] == prompt
        assert metrics["armillary_request_completion_tokens_sum"] == completion
        assert metrics["armillary_request_completion_tokens_count"] == 6
        for suffix, total in (("count", "armillary_steps_total"), ("sum", "armillary_computed_tokens_total")):
            parts = [metrics[f'armillary_step_tokens_{suffix}{{kind="{kind}"}}'] for kind in STEP_KINDS]
            assert sum(parts) == metrics[total] and all(parts)
        blocks = [metrics[f"armillary_kv_blocks_{state}"] for state in ("used", "cached", "free")]
        assert sum(blocks) == metrics["armillary_kv_blocks"] == 256 and blocks[0] == 0 < blocks[1]
        assert metrics["armillary_inter_token_seconds_count"] == completion - 12
        assert metrics["armillary_time_to_first_token_seconds_count"] == 6
    finally:
        running.stop()
