"""Sixteen client processes killed at random moments; afterwards nothing is left of them."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from armillary.server.generation import Generation
from server.harness import NAME, Running, ScriptedExecutor, torch_executor, write_model

CLIENT = """
import json, random, socket, sys, threading
host, port, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
def ask():
    while True:
        body = {"model": "org/tiny", "temperature": 0, "max_tokens": chance.randint(1, 90)}
        body |= {"stream": chance.random() < 0.5, "n": chance.choice((1, 1, 2, 3))}
        text = "".join(chance.choice("ab") for _ in range(chance.randint(1, 60)))
        if chance.random() < 0.3:
            body["stop"] = "Archipel"
        if chance.random() < 0.5:
            path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": text}]
        else:
            path, body["prompt"] = "/v1/completions", [text, text[:5] + "c"]
        raw = json.dumps(body).encode()
        try:
            wire = socket.create_connection((host, port))
            head = f"POST {path} HTTP/1.1\\r\\nhost: x\\r\\ncontent-length: {len(raw)}\\r\\n"
            head += "connection: close\\r\\n\\r\\n"
            wire.sendall(head.encode() + raw)
            while wire.recv(65536):
                if chance.random() < 0.02:
                    break
            wire.close()
        except OSError:
            pass
threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
for thread in threads: thread.start()
print("up", flush=True)
threads[0].join()
"""

LIMITS = {
    "num_blocks": 40,
    "block_size": 8,
    "max_running": 12,
    "max_step_tokens": 24,
    "max_chunk_tokens": 8,
    "max_waiting": 200,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Forty blocks of eight tokens, prompts in chunks, and never room for all: preemption is common."""
    running = Running(
        Path(tmp_path_factory.mktemp("storm")),
        ScriptedExecutor(step_s=0.003),
        **LIMITS,
    )
    running.wait()
    yield running
    running.stop()


@pytest.mark.parametrize("round_", range(2))
def test_abort_storm(server: Running, round_: int) -> None:
    storm(server, round_)


@pytest.mark.slow
def test_abort_storm_on_a_model_that_computes(tmp_path: Path) -> None:
    write_model(tmp_path)
    running = Running(tmp_path, torch_executor(tmp_path, LIMITS["num_blocks"], LIMITS["block_size"]), **LIMITS)
    try:
        running.wait()
        storm(running, 2)
        assert running.metrics()["armillary_block_copies_total"] > 0
    finally:
        running.stop()


def generations() -> int:
    """How many requests the server still holds in memory."""
    gc.collect()
    return sum(type(each) is Generation for each in gc.get_objects())


def storm(server: Running, round_: int) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    chance = random.Random(round_)
    metrics = server.metrics()
    before = metrics["armillary_preemptions_total"]
    clients = [
        subprocess.Popen([sys.executable, "-S", "-c", CLIENT, host, port, str(seed)], stdout=subprocess.PIPE)
        for seed in range(round_ * 16, round_ * 16 + 16)
    ]
    try:
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()
        end = time.monotonic() + 120
        while not (metrics["armillary_preemptions_total"] > before and metrics["armillary_sequences_waiting"]):
            assert time.monotonic() < end, "the storm must meet preempted sequences"
            time.sleep(0.02)
            metrics = server.metrics()
        for client in clients:
            time.sleep(chance.random() * 0.15)
            client.kill()
        killed = time.monotonic()
    finally:
        for client in clients:
            client.kill()
            client.wait()
            assert client.stdout is not None
            client.stdout.close()
    server.quiet(1.0)
    metrics = server.metrics()
    cancelled = sum(v for k, v in metrics.items() if k.startswith("armillary_requests_total") and "cancelled" in k)
    assert cancelled > 0
    assert not any(v for k, v in metrics.items() if k.startswith("armillary_requests_total") and '"error"' in k)
    while server.service.in_flight:
        assert time.monotonic() < killed + 10, "every request must be given up"
        time.sleep(0.02)
    while left := generations():
        assert time.monotonic() < killed + 20, f"{left} requests are still referred to from somewhere"
        time.sleep(0.05)
    assert server.engine is not None
    server.engine.scheduler.check()
    asked = {"model": NAME, "messages": [{"role": "user", "content": "still there?"}], "max_tokens": 20, "n": 2}
    choices = server.client().chat.completions.create(**asked).choices
    assert len(choices) == 2 and {choice.finish_reason for choice in choices} <= {"stop", "length"}
    assert server.get("/health").status_code == 200
