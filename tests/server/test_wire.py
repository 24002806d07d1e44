"""Connections, on bare sockets: slow and long heads, lies about lengths, what is no HTTP, and too many of them."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from armillary.deployment import ServerSettings
from armillary.server.body import MAX_DEPTH
from armillary.server.wire import SPARE_FILES, most_connections
from server.harness import NAME, Running

SHORT = {"model": NAME, "prompt": [65], "max_tokens": 2, "temperature": 0}
BODY = json.dumps(SHORT).encode()
MAX_BODY = 20_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = ServerSettings(port=0, drain_s=0.5, header_timeout_s=1.0, max_body=MAX_BODY)
    running = Running(Path(tmp_path_factory.mktemp("wire")), settings=settings)
    running.wait()
    yield running
    running.stop()


def connect(server: Running) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    wire = socket.create_connection((host, int(port)), timeout=30)
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return wire


def read(wire: socket.socket) -> bytes:
    """Until the server closes."""
    data = b""
    try:
        while part := wire.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


def answer(wire: socket.socket) -> bytes:
    """One whole answer; the connection stays."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = wire.recv(65536)
        assert part, data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    (length,) = (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    while len(body) < length:
        body += wire.recv(65536)
    return head + b"\r\n\r\n" + body


def error_of(data: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert "connection: close" in lines and "content-type: application/json" in lines, head
    assert any(line.startswith("x-request-id: req_") for line in lines)
    assert f"content-length: {len(body)}" in lines
    return int(head.split()[1]), json.loads(body)["error"]


def works(server: Running) -> None:
    # Retried, as the limit on heads is short and a busy machine may hold up the client between connecting and asking.
    assert server.client(retries=2).completions.create(**SHORT).usage.completion_tokens == 2


def head(length: int | str = len(BODY), *more: str) -> bytes:
    lines = ["POST /v1/completions HTTP/1.1", "host: x", f"content-length: {length}", *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


# -------------------------------------------------------------------- heads


def test_a_head_that_does_not_end_in_time_is_408(server: Running) -> None:
    wire = connect(server)
    wire.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n")
    status, error = error_of(read(wire))
    assert status == 408 and error["code"] == "request_timeout" and "1 seconds" in error["message"]
    assert server.metrics()['armillary_rejected_total{reason="request_timeout"}'] >= 1


def test_a_byte_now_and_then_buys_no_time(server: Running) -> None:
    wire = connect(server)
    data = head()
    try:
        for place in range(len(data)):
            wire.sendall(data[place : place + 1])
            time.sleep(0.04)
    except OSError:
        pass
    else:
        raise AssertionError("the head was taken although it came byte by byte")
    works(server)


def test_a_silent_connection_is_closed_without_a_word(server: Running) -> None:
    """What it would be told could pass for the answer to what it asks at that very moment."""
    assert read(connect(server)) == b""


def test_the_limit_is_for_heads_and_for_nothing_else(server: Running) -> None:
    """A body, an answer and the pause between two requests may each take longer."""
    wire = connect(server)
    wire.sendall(head())
    time.sleep(1.3)
    wire.sendall(BODY)
    assert answer(wire).startswith(b"HTTP/1.1 200")
    time.sleep(1.3)
    wire.sendall(head() + BODY)
    assert answer(wire).startswith(b"HTTP/1.1 200"), "kept alive"
    server.executor.step_s = 0.7
    try:
        wire.sendall(head() + BODY)
        assert answer(wire).startswith(b"HTTP/1.1 200")
    finally:
        server.executor.step_s = 0.0
    wire.sendall(head()[:20])
    assert error_of(read(wire))[0] == 408, "and the next head has its limit again"


def test_many_slow_heads_hold_up_nobody(server: Running) -> None:
    wires = [connect(server) for _ in range(200)]
    for wire in wires:
        wire.sendall(b"GET /v1/models HT")
    works(server)
    assert {error_of(read(wire))[0] for wire in wires} == {408}
    works(server)


@pytest.mark.parametrize(
    "line", [b"x-long: " + b"y" * 200_000, b"\r\n".join(b"x-%d: y" % i for i in range(40_000))], ids=["long", "many"]
)
def test_a_head_that_is_too_long_is_refused(server: Running, line: bytes) -> None:
    wire = connect(server)
    try:
        wire.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + line)
    except OSError:  # the server closed while more was coming
        pass
    data = read(wire)
    assert not data or error_of(data)[0] in (400, 413)
    works(server)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
        b"hello\r\n\r\n",
        b"GET /v1/models\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx: \x00\r\n\r\n",
        head("-1"),
        head("1e3"),
        head("5, 6"),
        head(5, "content-length: 6"),
        b"\r\n" * 50 + b"\x00",
    ],
    ids=["tls", "words", "version", "colon", "nul", "negative", "float", "list", "twice", "blank"],
)
def test_what_is_no_http_is_400_in_the_shape_of_all_errors(server: Running, data: bytes) -> None:
    wire = connect(server)
    wire.sendall(data)
    status, error = error_of(read(wire))
    assert status == 400 and error["code"] == "invalid_request" and error["type"] == "invalid_request_error"
    works(server)


# -------------------------------------------------------------------- bodies


def chunked(size: int, count: int) -> bytes:
    chunk = f"{size:x}\r\n".encode() + b" " * size + b"\r\n"
    return b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + chunk * count


def test_16_a_body_is_counted_as_it_comes(server: Running) -> None:
    """Nobody says how long it is, and it never ends."""
    wire = connect(server)
    wire.sendall(chunked(1000, MAX_BODY // 1000 + 2))
    data = wire.recv(65536)
    assert data.startswith(b"HTTP/1.1 413") and b"request_too_large" in data + wire.recv(65536)
    wire.close()
    works(server)


def test_16_a_chunked_body_within_the_limit_is_taken(server: Running) -> None:
    half = len(BODY) // 2
    parts = [BODY[:half], BODY[half:]]
    wire = connect(server)
    wire.sendall(chunked(1, 0) + b"".join(f"{len(p):x}\r\n".encode() + p + b"\r\n" for p in parts) + b"0\r\n\r\n")
    assert answer(wire).startswith(b"HTTP/1.1 200")


def test_16_a_length_beyond_the_limit_is_refused_before_a_byte_of_it(server: Running) -> None:
    wire = connect(server)
    wire.sendall(head(MAX_BODY + 1))
    assert wire.recv(65536).startswith(b"HTTP/1.1 413")
    wire.close()
    for absurd in ("9" * 18, "9" * 30):
        wire = connect(server)
        wire.sendall(head(absurd))
        assert wire.recv(65536).split()[1] in (b"413", b"400")
        wire.close()
    works(server)


def test_16_a_body_shorter_than_it_says_ends_with_its_connection(server: Running) -> None:
    wire = connect(server)
    wire.sendall(head(len(BODY) + 10) + BODY)
    time.sleep(0.2)
    wire.close()
    server.quiet()
    works(server)


def test_16_a_body_longer_than_it_says_is_cut_there(server: Running) -> None:
    wire = connect(server)
    wire.sendall(head(len(BODY) - 1) + BODY)
    assert answer(wire).startswith(b"HTTP/1.1 400"), "what is left makes no JSON, and the rest no request"
    rest = read(wire)
    assert not rest or error_of(rest)[0] == 400
    works(server)


def test_16_two_ways_to_say_a_length_never_make_two_requests(server: Running) -> None:
    """As request smuggling would have it."""
    wire = connect(server)
    inner = b"0\r\n\r\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    wire.sendall(head(len(inner), "transfer-encoding: chunked") + inner)
    data = read(wire)
    assert error_of(data)[0] == 400 and data.count(b"HTTP/1.1 ") == 1, "and the connection ends with it"
    works(server)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_16_nesting_is_limited_at_a_fixed_depth(server: Running, opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"

    def nested(depth: int) -> httpx.Response:
        value = opening * depth + b"1" + closing * depth
        body = b'{"model":"' + NAME.encode() + b'","prompt":[65],"max_tokens":1,"metadata":' + value + b"}"
        return server.post("/v1/completions", content=body)

    over = nested(MAX_DEPTH)
    assert over.status_code == 400 and f"nested at most {MAX_DEPTH} levels" in over.json()["error"]["message"]
    within = nested(MAX_DEPTH - 1)
    assert within.status_code == 400, "parsed, and of the wrong type"
    assert within.json()["error"]["param"].startswith("metadata")
    endless = server.post("/v1/completions", content=opening * (MAX_BODY // len(opening) - 1))
    assert endless.status_code == 400 and "nested" in endless.json()["error"]["message"]
    works(server)


def test_16_after_all_of_this_the_client_of_openai_is_served(server: Running) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        server.client().completions.create(model=NAME, prompt="x" * (MAX_BODY + 1), max_tokens=1)
    assert caught.value.status_code == 413 and caught.value.code == "request_too_large"
    works(server)


# -------------------------------------------------------------------- too many


def test_one_connection_too_many_is_503_and_probes_pass(tmp_path: Path) -> None:
    settings = ServerSettings(port=0, drain_s=0.5, max_connections=8)
    server = Running(tmp_path, settings=settings)
    try:
        server.wait()
        works(server)
        wires = [connect(server) for _ in range(8)]
        time.sleep(0.1)
        extra = connect(server)
        extra.sendall(head() + BODY)
        status, error = error_of(read(extra))
        assert status == 503 and error["code"] == "unavailable" and "at most 8" in error["message"]
        for path in ("/health", "/ready", "/metrics"):
            assert httpx.get(server.url + path).status_code == 200, path
        assert server.metrics()['armillary_rejected_total{reason="connections"}'] >= 1
        for wire in wires:
            wire.close()
        end = time.monotonic() + 120
        while httpx.get(f"{server.url}/v1/models").status_code != 200:
            assert time.monotonic() < end
        works(server)
    finally:
        server.stop()


def test_a_probe_beyond_the_limit_takes_nothing_else_with_it(tmp_path: Path) -> None:
    """What is pipelined behind it, or asked after it on the same connection, is not served."""
    settings = ServerSettings(port=0, drain_s=0.5, max_connections=2)
    server = Running(tmp_path, settings=settings)
    probe = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: keep-alive\r\n\r\n"
    try:
        server.wait()
        wires = [connect(server) for _ in range(8)]
        time.sleep(0.1)
        for pieces in ([probe + head() + BODY], [probe[:6], probe[6:] + head() + BODY], [probe, head() + BODY]):
            extra = connect(server)
            for piece in pieces:
                extra.sendall(piece)
                time.sleep(0.05)
            answer = read(extra)
            assert answer.startswith(b"HTTP/1.1 200") and answer.count(b"HTTP/1.1") == 1
            assert b"connection: close" in answer.lower()
        extra = connect(server)
        extra.sendall(b"GET /he\r\n\r\n")
        assert error_of(read(extra))[0] == 503
        for wire in wires:
            wire.close()
        server.wait()
        assert not any(value for name, value in server.metrics().items() if name.startswith("armillary_requests_total"))
    finally:
        server.stop()


def test_unset_the_limit_is_what_the_process_may_open() -> None:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert most_connections(7) == 7
    assert most_connections(None) == (2**31 if files == resource.RLIM_INFINITY else max(16, files - SPARE_FILES))
