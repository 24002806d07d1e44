"""`serve` as a process: what it prints, how signals end it, and with which status."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from armillary.errors import ArmillaryError, Code
from armillary.server.listener import listen, url_of
from server.scripted import NAME

PROGRAM = Path(__file__).with_name("scripted_process.py")
SOURCES = Path(__file__).parents[2] / "src"
Start = Callable[..., tuple[subprocess.Popen[str], str]]
ASK = {"model": NAME, "prompt": "x", "temperature": 0, "max_tokens": 60, "stream": True}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a server process and returns it with its URL, once it accepts requests."""
    processes: list[subprocess.Popen[str]] = []

    def begin(*arguments: object) -> tuple[subprocess.Popen[str], str]:
        paths = os.pathsep.join([str(SOURCES), str(PROGRAM.parents[1])])
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(tmp_path), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
        processes.append(process)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"curl (http://\S+)/v1/", line):
                assert lines[0] == "the plan\n" and any("ready in" in said for said in lines)
                return process, found[1]
        raise AssertionError((process.wait(), lines, process.stderr.read() if process.stderr else ""))

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def test_33_sigterm_finishes_the_running_stream_and_exits_0(start: Start) -> None:
    process, url = start(0, 0.02, 20)
    assert httpx.get(f"{url}/ready").status_code == 200
    with httpx.stream("POST", f"{url}/v1/completions", json=ASK, timeout=60) as response:
        lines = response.iter_lines()
        first = next(lines)
        process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert first.startswith("data: {")
    assert '"finish_reason":"length"' in rest[-2] and rest[-1] == "data: [DONE]"
    assert process.wait(60) == 0


def test_33_a_second_signal_does_not_wait(start: Start) -> None:
    process, url = start(0, 0.1, 600)
    with httpx.stream("POST", f"{url}/v1/completions", json={**ASK, "max_tokens": 400}, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        while httpx.get(f"{url}/ready").status_code == 200:
            pass
        process.send_signal(signal.SIGINT)
        rest = [line for line in lines if line]
    assert '"code":"unavailable"' in rest[-2] and rest[-1] == "data: [DONE]"
    assert process.wait(60) == 0


def test_33_a_dead_engine_is_a_non_zero_exit(start: Start) -> None:
    process, url = start(0, 0.0, 1, "die")
    response = httpx.post(f"{url}/v1/completions", json={**ASK, "stream": False}, timeout=60)
    assert response.status_code == 500 and response.json()["error"]["code"] == "engine_failed"
    assert process.wait(60) == 6
    assert process.stderr is not None and "the engine died" in process.stderr.read()


def test_15_sighup_reads_the_keys_anew(start: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\n")
    keys.chmod(0o644)
    process, url = start(0, 0.0, 1, f"keys={keys}")

    def status(key: str) -> int:
        return httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"}, timeout=60).status_code

    assert (status("first"), status("second")) == (200, 401)
    keys.write_text("second\n")
    process.send_signal(signal.SIGHUP)
    while status("second") != 200:
        assert process.poll() is None
    assert status("first") == 401
    keys.write_text("")
    process.send_signal(signal.SIGHUP)
    assert status("second") == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert process.stderr is not None
    said = process.stderr.read()
    assert "may be read by others" in said and "second" not in said


def test_a_taken_port_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ArmillaryError, match=f"server.port must be free, given {port}") as caught:
            listen("127.0.0.1", port)
        assert caught.value.code is Code.INVALID_DEPLOYMENT and caught.value.param == "port"
        paths = os.pathsep.join([str(SOURCES), str(PROGRAM.parents[1])])
        ended = subprocess.run(
            [sys.executable, str(PROGRAM), str(tmp_path), str(port), "0", "1"],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": paths},
        )
    assert ended.returncode == 2 and ended.stdout == "" and "server.port must be free" in ended.stderr
    assert not list(tmp_path.iterdir()), "nothing was loaded"


def test_addresses() -> None:
    for host in ("256.1.1.1", "192.0.2.1", "ü" * 80):
        with pytest.raises(ArmillaryError, match=r"server\.host must be an address of this machine"):
            listen(host, 0)
    with listen("0.0.0.0", 0) as everywhere:
        assert url_of(everywhere).startswith("http://127.0.0.1:")
    with listen("localhost", 0) as local:
        assert url_of(local).startswith("http://127.0.0.1:")
    if socket.has_ipv6:
        try:
            with listen("::1", 0) as six:
                assert url_of(six).startswith("http://[::1]:")
        except ArmillaryError:
            pytest.skip("this machine has no IPv6 address")
