"""What clients do to sockets: a real server goes on as if they were not there."""

from __future__ import annotations

import json
import re
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from survival.process import Server

BODY = {"model": "isles", "prompt": "Repeat: salt, tea", "max_tokens": 400, "ignore_eos": True, "stream": True}
IDLE = 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = Path(tmp_path_factory.mktemp("rough"))
    engine = {"max_running": 8, "kv_blocks": 300}
    with Server(folder, {"models": [{"name": "isles"}], "engine": engine}) as running:
        yield running


def wire(server: Server) -> socket.socket:
    at = urlsplit(server.url)
    assert at.hostname and at.port
    return socket.create_connection((at.hostname, at.port), timeout=60)


def request(body: bytes, length: int | None = None) -> bytes:
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def answers(server: Server) -> None:
    """The next request works."""
    body = {**BODY, "stream": False, "max_tokens": 2}
    reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
    assert reply.status_code == 200, reply.text
    assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200


def test_a_thousand_idle_connections(server: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < IDLE + 200:
        if hard != resource.RLIM_INFINITY and hard < IDLE + 200:
            pytest.skip(f"{IDLE} connections need {IDLE + 200} open files, and this machine allows {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (IDLE + 200, hard))
    before = server.resources.num_fds()
    idle = []
    try:
        for _ in range(IDLE):
            idle.append(wire(server))
        answers(server)
        assert server.resources.num_fds() >= before + IDLE / 2, "the connections were never there"
    finally:
        for one in idle:
            one.close()
    answers(server)
    settle(server, before)


def test_half_open_sockets(server: Server) -> None:
    """Connections that stop in the middle of the head, or of the body, or claim more than they send."""
    whole = json.dumps(BODY).encode()
    before = server.resources.num_fds()
    beginnings = (
        b"",
        b"POST /v1/comp",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n",
        request(whole[:20], len(whole)),
    )
    held = [wire(server) for _ in range(40)]
    for number, one in enumerate(held):
        one.sendall(beginnings[number % len(beginnings)])
    answers(server)
    for number, one in enumerate(held):
        if number % 2:
            one.shutdown(socket.SHUT_WR)  # says that it has sent everything
        else:
            one.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
            )  # goes with a reset
            one.close()
    answers(server)
    for one in held:
        one.close()
    settle(server, before)
    server.quiet()


def test_clients_that_never_read(server: Server) -> None:
    """Sixteen streams whose clients read nothing, twice what runs at once: others are served beside them."""
    body = json.dumps({**BODY, "max_tokens": 4}).encode()
    silent = []
    for _ in range(16):
        one = wire(server)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        one.sendall(request(body))
        silent.append(one)
    answers(server)
    server.quiet(120)  # they ran to their end without a reader
    for one in silent:
        one.close()
    answers(server)


def test_pipelined_and_broken_requests_on_one_connection(server: Server) -> None:
    """What is no HTTP is refused or closed, and only its own connection knows of it."""
    for garbage in (b"\x00\xff\x00\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST\r\n\r\n", b"A" * 100_000 + b"\r\n\r\n"):
        with wire(server) as one:
            one.settimeout(60)
            try:
                one.sendall(garbage)
                reply = one.recv(65536)
            except OSError:
                reply = b""
            assert not reply or re.match(rb"HTTP/1.1 [234]\d\d ", reply), reply[:200]
    answers(server)


def settle(server: Server, handles: int) -> None:
    until = time.monotonic() + 120
    while server.resources.num_fds() > handles + 4:
        assert time.monotonic() < until, (server.resources.num_fds(), handles)
        time.sleep(0.1)
