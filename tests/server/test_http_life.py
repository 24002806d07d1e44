"""Life of the server (behaviours 30, 31, 33, 34): cancellation, overload, health, metrics, faults, draining."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from armillary.deployment import ServerSettings
from armillary.errors import ArmillaryError, Code
from armillary.server.metrics import FINISHES, LEAVINGS, STEP_KINDS
from server.harness import NAME, Running, ScriptedExecutor, frames

ASK = [{"role": "user", "content": "Where?"}]
LONG = {"model": NAME, "messages": ASK, "max_tokens": 400, "temperature": 0}
SHORT = {**LONG, "max_tokens": 3}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """At most two sequences run, so that others wait; prompts are computed four tokens at a time."""
    running = Running(
        Path(tmp_path_factory.mktemp("life")),
        ScriptedExecutor(step_s=0.01),
        max_running=4,
        max_step_tokens=8,
        max_waiting=6,
    )
    running.wait()
    yield running
    running.stop()


def send(server: Running, body: dict[str, Any]) -> socket.socket:
    """A request on a bare socket, so that it can be left in any state."""
    from pydantic_core import to_json

    raw = to_json(body)
    host, port = server.url.removeprefix("http://").split(":")
    wire = socket.create_connection((host, int(port)))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(raw)}\r\n\r\n"
    wire.sendall(head.encode() + raw)
    return wire


def until(server: Running, name: str, least: float, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while server.metrics()[name] < least:
        assert time.monotonic() < end, f"{name} must reach {least}"
        time.sleep(0.01)


RUNNING, WAITING = "armillary_sequences_running", "armillary_sequences_waiting"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("n", [1, 3])
def test_30_a_closed_socket_frees_its_sequences(server: Running, stream: bool, n: int) -> None:
    wire = send(server, {**LONG, "stream": stream, "n": n})
    until(server, RUNNING, n)
    before = server.metrics()['armillary_requests_total{endpoint="chat",finish_reason="cancelled"}']
    wire.close()
    server.quiet()
    after = server.metrics()
    assert after['armillary_requests_total{endpoint="chat",finish_reason="cancelled"}'] == before + 1
    assert server.client().chat.completions.create(**SHORT).choices[0].finish_reason == "length"


def test_30_a_stream_closed_by_the_client_is_cancelled(server: Running) -> None:
    stream = server.client().chat.completions.create(**LONG, stream=True)
    next(iter(stream))
    assert server.metrics()[RUNNING] == 1
    stream.close()
    server.quiet()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_30_cancelled_while_queued(server: Running, stream: bool) -> None:
    running = [send(server, LONG) for _ in range(4)]
    until(server, RUNNING, 4)
    queued = send(server, {**LONG, "stream": stream, "n": 2})
    until(server, WAITING, 1)
    queued.close()
    end = time.monotonic() + 5
    while server.metrics()[WAITING]:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert server.metrics()[RUNNING] == 4
    for wire in running:
        wire.close()
    server.quiet()


def test_30_cancelled_during_the_prompt(server: Running) -> None:
    wire = send(server, {**SHORT, "messages": [{"role": "user", "content": "long " * 90}]})
    until(server, RUNNING, 1)
    wire.close()
    server.quiet()


def test_31_overload_is_429_with_a_time_to_retry_while_others_go_on(server: Running) -> None:
    wires = [send(server, {**LONG, "stream": True}) for _ in range(4)]
    until(server, RUNNING, 4)
    wires += [send(server, LONG) for _ in range(6)]
    until(server, WAITING, 6)
    with pytest.raises(openai.RateLimitError) as caught:
        server.client().chat.completions.create(**SHORT)
    assert caught.value.code == "queue_full" and int(caught.value.response.headers["retry-after"]) >= 1
    refused = server.post("/v1/chat/completions", {**SHORT, "stream": True})
    assert refused.status_code == 429 and refused.headers["content-type"] == "application/json"
    assert server.metrics()[RUNNING] == 4
    for wire in wires:
        wire.close()
    server.quiet()


PINNED = {
    "gauge": [
        "armillary_ready", "armillary_requests_in_flight", "armillary_build_info",
        "armillary_sequences_running", "armillary_sequences_waiting",
        "armillary_kv_blocks", "armillary_kv_blocks_used", "armillary_kv_blocks_cached", "armillary_kv_blocks_free",
        "armillary_stalled_seconds",
    ],
    "counter": [
        "armillary_steps", "armillary_computed_tokens", "armillary_generated_tokens",
        "armillary_prefix_query_tokens", "armillary_prefix_hit_tokens", "armillary_evictions",
        "armillary_preemptions", "armillary_block_copies", "armillary_sequences_finished",
        "armillary_forced_tokens",
        "armillary_requests", "armillary_rejected", "armillary_errors", "armillary_cancellations",
        "armillary_http_responses", "armillary_slow_readers", "armillary_prompt_tokens", "armillary_completion_tokens",
    ],
    "histogram": [
        "armillary_time_to_first_token_seconds", "armillary_inter_token_seconds", "armillary_request_seconds",
        "armillary_queue_seconds", "armillary_step_seconds", "armillary_step_tokens",
        "armillary_grammar_seconds", "armillary_request_prompt_tokens", "armillary_request_completion_tokens",
    ],
}  # fmt: skip
"""Names that dashboards are built on. One that moves breaks them without a word: add to these, take none away."""
LABELS: dict[str, tuple[str, ...]] = {
    "armillary_ready": (),
    "armillary_requests_in_flight": (),
    "armillary_build_info": ("version",),
    "armillary_http_responses": ("status",),
    "armillary_slow_readers": (),
    "armillary_sequences_finished": ("model", "finish_reason"),
    "armillary_requests": ("model", "endpoint", "finish_reason"),
    "armillary_rejected": ("model", "reason"),
    "armillary_errors": ("model", "code"),
    "armillary_cancellations": ("model", "state"),
    "armillary_step_seconds": ("model", "kind"),
    "armillary_step_tokens": ("model", "kind"),
    "armillary_grammar_seconds": ("model", "part"),
}
"""The others have the model's."""


def test_34_metric_names_are_pinned(server: Running) -> None:
    server.client().chat.completions.create(**SHORT)
    families = {f.name: f for f in text_string_to_metric_families(server.get("/metrics").text)}
    kinds = {name: family.type for name, family in families.items()}
    assert kinds == {name: kind for kind, names in PINNED.items() for name in names}
    labels = {name: {frozenset(s.labels) - {"le"} for s in family.samples} for name, family in families.items()}
    for name, given in labels.items():
        assert given <= {frozenset({*LABELS.get(name, ("model",))})}, name
    assert all(labels[name] for name in labels if name not in ("armillary_rejected", "armillary_errors"))
    for family in families.values():
        assert {s.labels["model"] for s in family.samples if "model" in s.labels} <= {NAME, ""}
    for name, label, values in (
        ("armillary_requests", "finish_reason", FINISHES),
        ("armillary_cancellations", "state", LEAVINGS),
        ("armillary_step_seconds", "kind", STEP_KINDS),
        ("armillary_step_tokens", "kind", STEP_KINDS),
    ):
        assert {s.labels[label] for s in families[name].samples} == set(values)


def test_34_requests_by_finish_reason_add_up_and_counters_never_fall(tmp_path: Path) -> None:
    running = Running(tmp_path, ScriptedExecutor(step_s=0.002))
    try:
        running.wait()
        client = running.client()
        sent = 0
        earlier: dict[str, float] = {}
        for round_ in range(4):
            for stream in (True, False):
                for options in ({}, {"stop": "Gr"}, {"top_p": 9}, {"model": "other"}, {"n": 2}):
                    sent += 1
                    try:
                        answer = client.chat.completions.create(**{**SHORT, "stream": stream, **options})
                        _ = list(answer) if stream else answer
                    except openai.APIStatusError:
                        pass
            wire = send(running, {**LONG, "stream": bool(round_ % 2)})
            sent += 1
            until(running, RUNNING, 1)
            wire.close()
            running.quiet()
            metrics = running.metrics()
            counters = {k: v for k, v in metrics.items() if "_total" in k or "_count" in k or "_bucket" in k}
            assert all(counters[name] >= value for name, value in earlier.items())
            earlier = counters
        by_reason = {
            reason: metrics[f'armillary_requests_total{{endpoint="chat",finish_reason="{reason}"}}']
            for reason in FINISHES
        }
        assert sum(by_reason.values()) == sent
        assert by_reason == {"stop": 8, "length": 16, "cancelled": 4, "error": 0, "refused": 16, "deadline": 0}
        assert metrics["armillary_time_to_first_token_seconds_count"] >= 24
        assert metrics["armillary_queue_seconds_count"] == 28
        assert metrics["armillary_steps_total"] == sum(
            metrics[f'armillary_step_seconds_count{{kind="{kind}"}}'] for kind in STEP_KINDS
        )
        assert metrics["armillary_completion_tokens_total"] >= 8 * 2 + 8 * 3 + 8 * 6
    finally:
        running.stop()


def test_the_journal_and_the_response_name_a_request_alike(server: Running) -> None:
    seen: set[str] = set()
    server.executor.fault = lambda step: seen.update(entry.sequence.request.id for entry in step.entries)
    client = server.client()
    chat = client.chat.completions.create(**SHORT).id
    one = client.completions.create(model=NAME, prompt="x", max_tokens=2).id
    two = client.completions.create(model=NAME, prompt=["x", "y"], max_tokens=2).id
    server.executor.fault = lambda step: None
    assert seen == {chat, one, f"{two}-0", f"{two}-1"}


def test_a_failing_step_fails_its_requests_and_no_others(server: Running) -> None:
    victims = 0

    def fail_victims(step: Any) -> None:
        nonlocal victims
        if any(len(entry.sequence.request.prompt) > 60 for entry in step.entries):
            victims += 1
            raise ValueError("a poisoned prompt")

    server.executor.fault = fail_victims
    try:
        for stream in (True, False):
            with pytest.raises(openai.InternalServerError, match="a poisoned prompt") as caught:
                poison = [{"role": "user", "content": "p" * 80}]
                server.client().chat.completions.create(**{**SHORT, "messages": poison, "stream": stream})
            assert caught.value.code == "engine_failed"
        assert victims == 2
        assert server.client().chat.completions.create(**SHORT).usage.completion_tokens == 3
        assert server.get("/health").status_code == 200
    finally:
        server.executor.fault = lambda step: None
    server.quiet()
    assert server.metrics()['armillary_requests_total{endpoint="chat",finish_reason="error"}'] == 2


def test_33_while_it_loads_a_server_says_so(tmp_path: Path) -> None:
    loaded = threading.Event()
    running = Running(tmp_path, before_load=lambda: loaded.wait(30))
    try:
        running.wait("/health", 200)
        assert running.get("/health").json()["status"] == "loading", "a load is no reason to be restarted"
        for path in ("/ready", "/v1/models"):
            running.wait(path, 503)
            assert "loading" in running.get(path).json()["error"]["message"]
            assert "retry-after" in running.get(path).headers
        refused = running.post("/v1/chat/completions", SHORT)
        assert refused.status_code == 503 and "retry-after" in refused.headers
        assert running.metrics()["armillary_ready"] == 0
        loaded.set()
        running.wait()
        assert running.metrics()["armillary_ready"] == 1
        assert running._http.head(f"{running.url}/health").status_code == 200
        # Nobody asks a client to wait for a model: the client's own retries bridge the time.
        assert running.client(retries=2).chat.completions.create(**SHORT).usage.completion_tokens == 3
    finally:
        loaded.set()
        running.stop()


def test_33_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    def fail() -> None:
        raise ArmillaryError(Code.INVALID_CHECKPOINT, "the weights are missing")

    running = Running(tmp_path, before_load=fail)
    running._thread.join(60)
    assert not running._thread.is_alive()
    assert isinstance(running.error, ArmillaryError) and running.error.code is Code.INVALID_CHECKPOINT


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
        b"GET / HTTP/1.1\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n{",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 100_000,
        b"\r\n" * 1000,
    ],
    ids=["tls", "half", "short-body", "negative", "bad-chunk", "long-line", "blank"],
)
def test_what_is_no_request_disturbs_nobody(server: Running, raw: bytes) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for _ in range(3):
        with socket.create_connection((host, int(port))) as wire:
            wire.sendall(raw)
    assert server.client().chat.completions.create(**SHORT).choices[0].finish_reason == "length"
    server.quiet()


def test_33_a_hanging_engine_turns_health_and_a_recovered_one_turns_it_back(tmp_path: Path) -> None:
    running = Running(tmp_path, settings=ServerSettings(port=0, stall_s=0.3, drain_s=0.2))
    let_go = threading.Event()
    try:
        running.wait()
        running.executor.fault = lambda step: let_go.wait(30) and None
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(running.client().chat.completions.create, **SHORT)
            running.wait("/health", 503)
            assert "finished no step" in running.get("/health").json()["error"]["message"]
            assert running.get("/ready").status_code == 503
            assert running.metrics()["armillary_stalled_seconds"] > 0.3
            let_go.set()
            assert answer.result(20).choices[0].finish_reason == "length"
        running.wait("/health", 200)
        assert running.get("/ready").status_code == 200
    finally:
        let_go.set()
        running.stop()


def test_33_a_dead_engine_fails_its_requests_and_ends_the_server(tmp_path: Path) -> None:
    running = Running(tmp_path, ScriptedExecutor(step_s=0.01))
    running.wait()
    stream = iter(running.client().chat.completions.create(**LONG, stream=True))
    next(stream)

    def die(step: object) -> None:
        raise SystemExit("the engine's thread is gone")

    running.executor.fault = die
    with pytest.raises(openai.APIError, match="the engine"):
        list(stream)
    running._thread.join(60)
    assert not running._thread.is_alive()
    assert "the engine died" in str(running.error)


def test_33_draining_refuses_newcomers_and_finishes_what_runs(tmp_path: Path) -> None:
    running = Running(tmp_path, ScriptedExecutor(step_s=0.01), ServerSettings(port=0, drain_s=20))
    running.wait()
    client = running.client()
    stream = iter(client.chat.completions.create(**{**LONG, "max_tokens": 80}, stream=True))
    next(stream)
    running.begin_to_stop()
    running.wait("/ready", 503)
    assert running.get("/health").status_code == 200
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**SHORT)
    assert caught.value.status_code == 503 and caught.value.code == "unavailable"
    assert "retry-after" in caught.value.response.headers
    assert list(stream)[-1].choices[0].finish_reason == "length"
    running._thread.join(60)
    assert not running._thread.is_alive() and running.error is None


def test_33_draining_ends_at_its_limit_with_an_error_in_the_stream(tmp_path: Path) -> None:
    running = Running(tmp_path, ScriptedExecutor(step_s=0.02), ServerSettings(port=0, drain_s=0.2))
    running.wait()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(running.post, "/v1/chat/completions", {**LONG, "stream": True})
        until(running, RUNNING, 1)
        running.stop()
        events = frames(reading.result(10))
    assert '"code":"unavailable"' in events[-2] and events[-1] == "[DONE]"
    assert running.error is None


def test_a_reader_that_stops_reading_is_cut_and_disturbs_nobody(tmp_path: Path) -> None:
    limits = {"num_blocks": 1200, "max_context": 9_000, "max_step_tokens": 1024}
    # Steps that take a while: a fast machine would be through with all tokens before anybody looks.
    running = Running(tmp_path, ScriptedExecutor(step_s=0.001), patience_s=2.0, send_buffer=16_384, **limits)
    try:
        running.wait()
        host, port = running.url.removeprefix("http://").split(":")
        wire = socket.socket()
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.connect((host, int(port)))
        from pydantic_core import to_json

        body = {**LONG, "max_tokens": 8_900, "stream": True, "logprobs": True, "top_logprobs": 20}
        raw = to_json(body)
        wire.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw
        )
        until(running, RUNNING, 1)
        assert running.client().chat.completions.create(**SHORT).choices[0].finish_reason == "length"
        until(running, "armillary_slow_readers_total", 1)
        running.quiet(5.0)
        assert running.client().chat.completions.create(**SHORT).choices[0].finish_reason == "length"
        wire.close()
    finally:
        running.stop()
