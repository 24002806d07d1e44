"""Sleep and wake: what is given back, what comes back, and what a request to a sleeping model gets."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from server.deployed import SMALL, Deployed, Gate
from server.harness import write_model

ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Where?"}],
    "max_tokens": 12,
    "logprobs": True,
    "extra_body": {"ignore_eos": True},
}
LONG = {**ASK, "max_tokens": 200, "stream": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("sleeper")
    write_model(found)
    return found


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Deployed]:
    running = Deployed([{"path": str(folder), "name": "sleeper"}])
    running.wait()
    yield running
    running.stop()


def answer(server: Deployed, seed: int = 7, model: str = "sleeper") -> list[tuple[str, float]]:
    """Tokens and logprobs."""
    found = server.client().chat.completions.create(model=model, temperature=1, seed=seed, **ASK)
    assert found.choices[0].logprobs is not None and found.choices[0].logprobs.content is not None
    return [(entry.token, entry.logprob) for entry in found.choices[0].logprobs.content]


@pytest.mark.parametrize("weights", ["keep", "drop"])
def test_a_woken_model_answers_bit_for_bit_as_before(server: Deployed, weights: str) -> None:
    before = [answer(server, seed) for seed in range(3)]
    awake = server.get("/v1/models/sleeper").json()["memory"]
    counters = {name: value for name, value in server.metrics().items() if "_total" in name}
    asleep = server.change("sleep", "sleeper", weights=weights)
    assert asleep["state"] == "sleeping" and asleep["max_model_len"] == 256
    assert asleep["memory"]["kv"] == asleep["memory"]["kv_taken"] == asleep["memory"]["workspace"] == 0
    assert asleep["memory"]["weights"] == (awake["weights"] if weights == "keep" else 0)
    assert isinstance(asleep["memory"]["freed"], int)
    gauges = server.metrics()
    assert gauges["armillary_kv_blocks"] == 0 and gauges["armillary_ready"] == 0
    assert all(gauges[name] >= value for name, value in counters.items()), "counters never fall"
    woken = server.change("wake", "sleeper")
    assert woken["state"] == "ready" and woken["memory"]["kv"] == awake["kv"]
    assert ("weights" in woken["loading"]["seconds"]) == (weights == "drop"), "kept weights are not read again"
    assert [answer(server, seed) for seed in range(3)] == before
    after = server.metrics()
    assert all(after[name] >= value for name, value in counters.items())


def test_a_sleeping_model_says_so_and_the_server_is_not_ready(server: Deployed) -> None:
    server.change("sleep", "sleeper")
    with pytest.raises(openai.InternalServerError, match="'sleeper' cannot answer now: it sleeps") as caught:
        answer(server)
    assert caught.value.status_code == 503 and caught.value.code == "unavailable"
    assert "retry-after" in caught.value.response.headers
    unready = server.get("/ready")
    assert unready.status_code == 503 and "sleeper is sleeping" in unready.json()["error"]["message"]
    assert server.get("/health").status_code == 200
    assert [card.state for card in server.client().models.list()] == ["sleeping"]
    assert server.change("sleep", "sleeper")["state"] == "sleeping", "asleep already"
    assert server.change("sleep", "sleeper", weights="drop")["memory"]["weights"] == 0, "and now deeper"
    server.change("wake", "sleeper")
    assert server.change("wake", "sleeper")["state"] == "ready", "awake already"
    assert server.get("/ready").status_code == 200


def test_the_steps_of_an_engine_that_is_gone_are_not_kept(server: Deployed) -> None:
    """Else a thousand requests that ended would hold the records of every engine that there was."""
    answer(server)
    tally = next(iter(server.service.requests))
    while tally.ended_at is None:
        time.sleep(0.01)
    assert tally.recent is not None
    before = server.get(f"/v1/requests/{tally.id}/timeline").json()
    assert "decode" in before["phases_ns"]
    records = weakref.ref(tally.recent)
    server.change("sleep", "sleeper", weights="drop")
    gc.collect()
    assert tally.recent is None and records() is None
    after = server.get(f"/v1/requests/{tally.id}/timeline").json()
    assert after["wall_ns"] == before["wall_ns"] == sum(after["phases_ns"].values()), "it is listed on"
    assert "unrecorded" in after["phases_ns"] and server.change("wake", "sleeper")["state"] == "ready"


def test_what_runs_ends_before_the_model_sleeps(server: Deployed) -> None:
    stream = iter(server.client().chat.completions.create(model="sleeper", **LONG))
    next(stream)
    begun = server.post("/v1/models/sleep", {"model": "sleeper", "wait": False, "drain_s": 60})
    assert begun.status_code == 202 and begun.json()["state"] == "draining"
    with pytest.raises(openai.InternalServerError, match="last requests are being finished"):
        answer(server)
    for verb in ("sleep", "wake", "unload"):
        assert server.post(f"/v1/models/{verb}", {"model": "sleeper"}).status_code == 503
    assert list(stream)[-1].choices[0].finish_reason == "length"
    while server.state("sleeper") != "sleeping":
        pass
    server.change("wake", "sleeper")


def test_what_still_runs_when_its_time_is_over_is_told_so(server: Deployed) -> None:
    for _ in range(20):
        stream = iter(server.client().chat.completions.create(model="sleeper", **LONG))
        next(stream)
        server.change("sleep", "sleeper", drain_s=0)
        try:
            list(stream)
        except openai.APIError as error:
            assert "the engine was stopped" in str(error)
            break
        finally:
            server.change("wake", "sleeper")
    else:
        pytest.fail("every answer was quicker than the request to sleep")


def test_a_request_wakes_its_model_where_the_deployment_says_so(folder: Path) -> None:
    gate = Gate()
    gate.guarded = "sleeper"
    models = [{"path": str(folder), "name": "sleeper", "start": "asleep", "wake_on_request": True}]
    running = Deployed(models, build=gate)
    try:
        running.wait()
        assert running.state("sleeper") == "sleeping" and running.said == [], "nothing was loaded"
        answers: list[Any] = []
        threads = [threading.Thread(target=lambda: answers.append(answer(running))) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert gate.waits.wait(60)
        assert running.state("sleeper") == "waking" and running.get("/ready").status_code == 200
        # One that goes away while it waits wakes the model all the same.
        with pytest.raises(openai.APITimeoutError):
            running.client().with_options(timeout=0.05).chat.completions.create(model="sleeper", **ASK)
        gate.opened.set()
        for thread in threads:
            thread.join(60)
        assert len(answers) == 3 and answers[0] == answers[1] == answers[2]
        running.change("sleep", "sleeper", weights="drop")
        assert answer(running) == answers[0]
    finally:
        gate.opened.set()
        running.stop()


def test_a_wake_that_fails_leaves_the_model_asleep_and_says_why(tmp_path: Path) -> None:
    write_model(tmp_path)
    running = Deployed([{"path": str(tmp_path), "name": "sleeper", "wake_on_request": True}])
    try:
        running.wait()
        before = answer(running)
        running.change("sleep", "sleeper", weights="drop")
        weights = tmp_path / "model.safetensors"
        weights.rename(tmp_path / "elsewhere")
        with pytest.raises(openai.InternalServerError, match="'sleeper' could not be woken: .*safetensors") as caught:
            answer(running)
        assert caught.value.status_code == 503
        found = running.get("/v1/models/sleeper").json()
        assert found["state"] == "sleeping" and "safetensors" in found["error"]
        refused = running.post("/v1/models/wake", {"model": "sleeper"})
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "invalid_checkpoint"
        (tmp_path / "elsewhere").rename(weights)
        assert answer(running) == before
    finally:
        running.stop()


def test_weights_and_keys_leave_main_memory(tmp_path: Path) -> None:
    write_model(tmp_path, hidden_size=768, intermediate_size=3072, num_hidden_layers=2, head_dim=64,
                num_attention_heads=12, num_key_value_heads=12, max_position_embeddings=4096)  # fmt: skip
    engine = {**SMALL, "kv_blocks": 600, "max_context": 4096, "max_step_tokens": 512}
    running = Deployed([{"path": str(tmp_path), "name": "sleeper"}], engine=engine)
    try:
        running.wait()
        prompt = list(range(1, 250)) * 12
        running.client().completions.create(model="sleeper", prompt=prompt, max_tokens=1)
        memory = running.get("/v1/models/sleeper").json()["memory"]
        assert memory["kv_taken"] > 0.6 * memory["kv"] > 20 << 20
        process = psutil.Process()
        full = process.memory_info().rss
        running.change("sleep", "sleeper")
        light = process.memory_info().rss
        assert full - light > 0.9 * memory["kv_taken"]
        running.change("sleep", "sleeper", weights="drop")
        assert light - process.memory_info().rss > 0.9 * memory["weights"]
    finally:
        running.stop()


def test_seeds_go_on_over_sleep(folder: Path) -> None:
    def drawn(naps: bool) -> list[str | None]:
        running = Deployed([{"path": str(folder), "name": "sleeper"}], engine={**SMALL, "seed": 5})
        try:
            running.wait()
            found = []
            for _ in range(3):
                chat = running.client().chat.completions.create(model="sleeper", temperature=1, **ASK)
                found.append(chat.choices[0].message.content)
                if naps:
                    running.change("sleep", "sleeper", weights="drop")
                    running.change("wake", "sleeper")
            return found
        finally:
            running.stop()

    assert drawn(naps=True) == drawn(naps=False)
