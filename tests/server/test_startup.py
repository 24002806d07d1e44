"""The start of `armillary serve`: its phases add up to the wall clock, from the process's first moment on."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from armillary.kernels import native
from armillary.server.serve import collect_garbage_from_now_on
from server.scripted import write_model

SOURCES = Path(__file__).parents[2] / "src"


def serve(*arguments: object) -> tuple[subprocess.Popen[str], list[str], str, float]:
    """Start the command; the process, what it said until it was ready, its URL, and how long that took."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "armillary", "serve", *map(str, arguments), "--port", "0", "--log-level", "warning"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if found := re.search(r"curl (http://\S+)/v1/", line):
            return process, lines, found[1], time.monotonic() - began
    raise AssertionError((process.wait(), lines, process.stderr.read() if process.stderr else ""))


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def parts(line: str) -> tuple[float, dict[str, float]]:
    """The printed total, and the printed phases."""
    total = re.search(r"ready in ([\d.]+) s", line)
    assert total is not None, line
    found = re.findall(r"[(,] ?([\w .-]+?) ([\d.]+) s", line)
    return float(total[1]), {name: float(seconds) for name, seconds in found}


def test_phases_add_up_to_the_total_and_the_total_to_the_wall_clock(tmp_path: Path) -> None:
    write_model(tmp_path)
    process, lines, url, seen = serve(tmp_path, "--threads", 1)
    try:
        (line,) = [line for line in lines if line.startswith("ready in")]
        total, phases = parts(line)
        assert abs(sum(phases.values()) - total) <= 0.005 * (len(phases) + 1), "within what rounding to 0.01 s can do"
        assert {"interpreter", "imports", "the rest"} <= set(phases)
        # The process began after this test started it, and was ready before this test could read so.
        assert total <= seen + 0.02
        model = httpx.get(f"{url}/v1/models/{tmp_path.name}").json()
        loading = model["loading"]
        # The native kernels need no torch, and pack weights as they are read.
        weights = ["weights"] if native.chosen() else ["torch", "weights", "packing"]
        order = ["runtime", "model", "config", "plan", "tokenizer", *weights, "KV cache", "warm-up", "engine"]
        assert list(loading["seconds"]) == order
        assert abs(sum(loading["seconds"].values()) - loading["total_s"]) < 1e-4 < loading["total_s"] < total
    finally:
        stop(process)


def test_garbage_is_looked_for_once_the_server_is_ready() -> None:
    collect_garbage_from_now_on()
    assert gc.isenabled() and not gc.get_freeze_count(), "of a process that loads in the midst of other work"
    gc.disable()
    try:
        collect_garbage_from_now_on()
        assert gc.isenabled() and gc.get_freeze_count()
    finally:
        gc.enable()
        gc.unfreeze()


def test_of_several_models_each_is_one_phase(tmp_path: Path) -> None:
    for name in ("east", "west"):
        (tmp_path / name).mkdir()
        write_model(tmp_path / name)
    file = tmp_path / "two.yaml"
    file.write_text("models: [./east, ./west, {path: ./west, name: spare, start: asleep}]\nengine: {kv_blocks: 64}\n")
    process, lines, url, _ = serve(file, "--threads", 1)
    try:
        (line,) = [line for line in lines if line.startswith("ready in")]
        total, phases = parts(line)
        assert abs(sum(phases.values()) - total) <= 0.005 * (len(phases) + 1)
        assert {"east", "west"} <= set(phases) and "runtime" not in phases
        assert [line for line in lines if line.startswith("loading")] == ["loading east", "loading west"]
        assert f"east at {url}/v1" in lines and "spare sleeps" in lines
        states = {card["id"]: card["state"] for card in httpx.get(f"{url}/v1/models").json()["data"]}
        assert states == {"east": "ready", "west": "ready", "spare": "sleeping"}
    finally:
        stop(process)
