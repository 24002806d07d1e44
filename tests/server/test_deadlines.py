"""Requests whose time is over, over HTTP: 504 or a finish reason of its own, in every state, and room at once."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.datastructures import Headers

from armillary.core.step import Step
from armillary.server import generation, timelimit
from armillary.server.exchange import Exchange
from armillary.server.timelimit import header_seconds, hint_of, silence, times_of
from server.harness import NAME, Running, ScriptedExecutor, frames

ASK = [{"role": "user", "content": "Where?"}]
LONG = {"model": NAME, "messages": ASK, "max_tokens": 400, "temperature": 0}
SHORT = {**LONG, "max_tokens": 3}
LATE = 'armillary_requests_total{endpoint="chat",finish_reason="deadline"}'
CHAT = "/v1/chat/completions"


class Gate:
    """Lets steps pass, or holds them up until it is opened."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.held = threading.Event()

    def __call__(self, step: Step) -> None:
        if not self._open.is_set():
            self.held.set()
            assert self._open.wait(60)

    def close(self) -> None:
        self.held.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(
        Path(tmp_path_factory.mktemp("late")), ScriptedExecutor(step_s=0.01), max_running=4, max_step_tokens=8
    )
    running.wait()
    yield running
    running.stop()


@pytest.fixture
def gate(server: Running) -> Iterator[Gate]:
    gate = Gate()
    server.executor.fault = gate
    yield gate
    gate.open()
    server.executor.fault = lambda step: None
    server.quiet()


def answered(server: Running) -> float:
    """POSTs that were answered, by whatever."""
    return sum(v for k, v in server.metrics().items() if k.startswith('armillary_http_responses_total{status="504'))


@pytest.mark.parametrize("how", ["header", "body", "both"])
@pytest.mark.parametrize("n", [1, 3])
def test_14_an_answer_that_takes_too_long_is_504_and_its_blocks_are_free(server: Running, how: str, n: int) -> None:
    options: dict[str, Any] = {
        "header": {"extra_headers": {"x-request-timeout": "0.3"}},
        "body": {"extra_body": {"timeout": 0.3}},
        "both": {"extra_headers": {"x-request-timeout": "100"}, "extra_body": {"timeout": 0.3}},
    }[how]
    before = server.metrics()[LATE]
    with pytest.raises(openai.InternalServerError) as caught:
        server.client().chat.completions.create(**LONG, n=n, **options)
    assert caught.value.status_code == 504 and caught.value.code == "deadline_exceeded"
    assert caught.value.response.headers["x-should-retry"] == "false"
    server.quiet()
    after = server.metrics()
    assert after[LATE] == before + 1
    assert server.client().chat.completions.create(**SHORT).usage.completion_tokens == 3


def test_12_a_missed_deadline_is_asked_once(server: Running) -> None:
    """The client retries what is 5xx; this one says that it should not."""
    before = answered(server)
    with pytest.raises(openai.InternalServerError):
        server.client(retries=2).chat.completions.create(**LONG, extra_headers={"x-request-timeout": "0.2"})
    assert answered(server) == before + 1


@pytest.mark.parametrize("n", [1, 2])
def test_14_a_stream_that_has_begun_ends_with_a_finish_reason_of_its_own_and_an_error(server: Running, n: int) -> None:
    response = server.post(CHAT, {**LONG, "stream": True, "n": n, "timeout": 1.0})
    assert response.status_code == 200
    events = frames(response)
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["error"]["code"] == "deadline_exceeded"
    chunks = [json.loads(event) for event in events[:-2]]
    finishes = [(c["choices"][0]["index"], f) for c in chunks if (f := c["choices"][0]["finish_reason"])]
    assert sorted(finishes) == [(index, "deadline") for index in range(n)]
    assert any(chunk["choices"][0]["delta"].get("content") for chunk in chunks)
    server.quiet()


def test_14_the_client_raises_for_such_a_stream_and_for_one_that_never_began(server: Running, gate: Gate) -> None:
    seen = []
    with pytest.raises(openai.APIError, match="time that this request was given is over"):
        for chunk in server.client().chat.completions.create(**LONG, stream=True, extra_body={"timeout": 1.0}):
            seen.append(chunk.choices[0].finish_reason)
    assert seen[-1] == "deadline" and len(seen) > 3
    wires = [threading.Thread(target=server.post, args=(CHAT, {**LONG, "max_tokens": 200})) for _ in range(4)]
    for wire in wires:
        wire.start()
    while server.metrics()["armillary_sequences_running"] < 4:
        pass
    with pytest.raises(openai.InternalServerError) as caught:
        server.client().chat.completions.create(**LONG, stream=True, extra_body={"timeout": 0.1})
    assert caught.value.status_code == 504, "nothing was sent, so there is a status"
    for wire in wires:
        wire.join()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_14_during_the_prompt(server: Running, stream: bool) -> None:
    prompt = [{"role": "user", "content": "long " * 80}]
    response = server.post(CHAT, {**LONG, "max_tokens": 3, "messages": prompt, "stream": stream, "timeout": 0.15})
    assert response.status_code == 504 and response.json()["error"]["code"] == "deadline_exceeded"
    server.quiet()


@pytest.mark.parametrize("seconds", ["0", "-3.5", "1e-9"])
def test_a_time_that_is_over_at_arrival_is_504_at_once(server: Running, gate: Gate, seconds: str) -> None:
    response = server.post(CHAT, LONG, headers={"x-request-timeout": seconds})
    assert response.status_code == 504 and response.json()["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("text", ["soon", "", "nan", "inf", "-inf", "1 s", "9" * 400, "0x10"])
def test_a_header_that_is_no_number_is_400(server: Running, text: str) -> None:
    response = server.post(CHAT, SHORT, headers={"x-request-timeout": text})
    assert response.status_code == 400 and response.json()["error"]["param"] == "x-request-timeout"


@pytest.mark.parametrize("value", [0, -1, "5", 1e9, True, [1]])
def test_a_field_that_is_out_of_range_is_400(server: Running, value: Any) -> None:
    response = server.post(CHAT, {**SHORT, "timeout": value})
    assert response.status_code == 400 and response.json()["error"]["param"] == "timeout"


def test_an_engine_that_hangs_holds_no_client_past_its_time(
    server: Running, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine cannot decide anything while its step goes on; the client is answered all the same."""
    monkeypatch.setattr(generation, "OVERDUE_S", 0.05)
    gate.close()
    first = threading.Thread(target=server.post, args=(CHAT, SHORT))
    first.start()
    assert gate.held.wait(30)
    for stream in (True, False):
        response = server.post(CHAT, {**LONG, "stream": stream, "timeout": 0.1})
        assert response.status_code == 504, "the step is still under way"
    gate.open()
    first.join()
    server.quiet()


def test_14_a_read_timeout_ends_work_that_nobody_waits_for(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own header, with a client behind a proxy that keeps the connection."""
    monkeypatch.setattr(timelimit, "GONE_S", 0.0)
    response = server.post(CHAT, LONG, headers={"x-stainless-read-timeout": "0.3"})
    assert response.status_code == 504
    server.quiet()


def test_14_a_read_timeout_limits_no_stream_and_keeps_it_from_falling_silent(server: Running, gate: Gate) -> None:
    gate.close()
    comments = 0
    headers = {"x-stainless-read-timeout": "0.1"}
    with server._http.stream("POST", server.url + CHAT, json={**SHORT, "stream": True}, headers=headers) as response:
        lines = response.iter_lines()
        for line in lines:
            comments += line.startswith(":")
            if comments == 3:
                gate.open()
            if line == "data: [DONE]":
                break
    assert comments >= 3


def test_14_the_client_of_openai_waits_through_a_queue_in_a_stream(server: Running, gate: Gate) -> None:
    """Its read timeout is far shorter than the wait, and it never hears of it."""
    gate.close()
    timer = threading.Timer(1.5, gate.open)
    timer.start()
    client = server.client().with_options(timeout=0.5)
    text = "".join(c.choices[0].delta.content or "" for c in client.chat.completions.create(**SHORT, stream=True))
    assert text
    timer.join()


@pytest.mark.parametrize("text", ["None", "", "-1", "0", "nan", "inf", "soon"])
def test_a_hint_that_makes_no_sense_is_no_hint(server: Running, text: str) -> None:
    response = server.post(CHAT, SHORT, headers={"x-stainless-read-timeout": text})
    assert response.status_code == 200


class Body:
    def __init__(self, stream: bool = False, timeout: float | None = None, deadline_s: float | None = None) -> None:
        self.stream: bool | None = stream
        self.timeout, self.deadline_s = timeout, deadline_s


def exchange(**headers: str) -> Exchange:
    return Exchange("x", Headers({name.replace("_", "-"): value for name, value in headers.items()}))


def test_what_follows_from_what_a_client_says() -> None:
    hint = {"x_stainless_read_timeout": "600"}

    def times(body: Body, **headers: str) -> tuple[float | None, float | None]:
        found = times_of(body, exchange(**headers), 1000.0)
        ends = [None if moment is None else round(moment - 1000.0, 1) for moment in (found.deadline, found.expires)]
        return ends[0], ends[1]

    assert times(Body()) == (None, None)
    assert times(Body(timeout=5)) == (5.0, 5.0)
    assert times(Body(), x_request_timeout="2") == (2.0, 2.0)
    assert times(Body(timeout=5), x_request_timeout="2") == (2.0, 2.0)
    assert times(Body(deadline_s=9)) == (9.0, None), "what is only wanted ends nothing"
    assert times(Body(deadline_s=9, timeout=5)) == (9.0, 5.0)
    assert times(Body(), **hint) == (600.0, 601.0), "ordered by the hint, and ended when the client is gone for sure"
    assert times(Body(timeout=5), **hint) == (5.0, 5.0)
    assert times(Body(stream=True), **hint) == (None, None), "in a stream every byte starts its time anew"
    assert times(Body(stream=True, timeout=5), **hint) == (5.0, 5.0)
    assert times(Body(), x_request_timeout="1e8") == (None, None)
    assert header_seconds("-1") == -1.0
    assert hint_of(exchange(**hint)) == 600.0 and hint_of(None) is None
    assert silence(exchange(**hint), 15.0) == 15.0 and silence(None, 15.0) == 15.0
    assert silence(exchange(x_stainless_read_timeout="4"), 15.0) == 2.0


def test_time_runs_from_arrival() -> None:
    late = exchange(x_request_timeout="5")
    late.arrived -= 3.0
    found = times_of(Body(), late, 1000.0)
    assert found.expires is not None and abs(found.expires - 1002.0) < 0.5


def test_14_a_body_that_comes_too_late_is_504(server: Running) -> None:
    """The engine knows nothing of it yet."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as wire:
        wire.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\nx-request-timeout: 0.2\r\n\r\n{"
        )
        answer = wire.recv(65536)
    assert answer.startswith(b"HTTP/1.1 504")


def test_14_what_takes_long_before_the_engine_counts_too(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waking a model, compiling a grammar, tokenising a book."""
    waited = threading.Event()

    async def slow(name: str) -> Any:
        try:
            await asyncio.sleep(30)
        finally:
            waited.set()

    monkeypatch.setattr(server.service, "model", slow)
    assert server.post(CHAT, {**SHORT, "timeout": 0.2}).status_code == 504
    assert waited.is_set()
    assert server.post("/tokenize", {"prompt": "x"}, headers={"x-request-timeout": "0.1"}).status_code == 504
    monkeypatch.undo()
    assert server.post(CHAT, {**SHORT, "timeout": 20}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {"model": NAME, "messages": ASK, "max_tokens": 400, "temperature": 0}),
        ("/v1/responses", {"model": NAME, "input": "Where?", "max_output_tokens": 400, "temperature": 0}),
    ],
)
def test_other_dialects_end_as_failures_too(server: Running, path: str, body: dict[str, Any]) -> None:
    whole = server.post(path, {**body, "timeout": 0.3})
    assert whole.status_code == 504 and "time that this request was given is over" in whole.json()["error"]["message"]
    stream = server.post(path, {**body, "timeout": 1.0, "stream": True})
    events = [json.loads(line[5:]) for line in stream.text.splitlines() if line.startswith("data:")]
    kinds = [event["type"] for event in events]
    assert len(kinds) > 5 and kinds[-1] in ("error", "response.failed")
    assert not {"message_stop", "response.completed", "response.incomplete"} & set(kinds)
    server.quiet()
