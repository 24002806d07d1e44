"""What an adapter is, and how it is driven: one JSON object a line on standard input, one answer a line.

This file and the adapters run in the environments of the engines: the standard library only, at the top.

    {"do": "convert", "checkpoint": path, "target": path, "precision": name}          -> {"ok": true}
    {"do": "load", "model": path, "precision": name, "threads": n, ...}               -> {"ok": true, "facts": {...}}
    {"do": "run", "requests": [[ids, output], ...], "running": n, "shared": n}  -> {"seconds": s, ...}
    {"do": "stop"}

`run` answers {"seconds": by the wall, "cpu": of processor time by all threads, "outputs": [[ids]]}. Whatever fails
answers {"error": text}. What libraries print goes to standard error.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Tokens = list[int]
DIE_WITH_PARENT = 1
"""Of prctl(2)."""


@dataclass(frozen=True)
class Load:
    """How an engine is to be loaded.

    Attributes:
        context: positions that the longest sequence may have, over all workloads.
        running: most sequences at a time, over all workloads.
        positions: that all sequences together may have at a time, over all workloads.
    """

    model: Path
    precision: str
    threads: int
    context: int
    running: int
    positions: int


@dataclass(frozen=True)
class Batch:
    """Requests to run together: prompts and how many tokens to generate after each."""

    prompts: list[Tokens]
    outputs: list[int]
    running: int
    shared: int


@dataclass(frozen=True)
class About:
    """What an adapter says of its engine before there is one.

    Attributes:
        precisions: the precisions it is measured in -> what that is there.
        packages: what pip installs into its environment, with versions; empty: the environment of this project.
        unwanted: of what comes along with them, what is taken out again.
        missing: other precisions -> why it has none.
        build: variables of the environment while pip builds them.
        environment: variables that its process starts with; `{env}`, the environment's folder, and `{cpus}`, a
            processor for each thread, are filled in.
    """

    precisions: dict[str, str]
    packages: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
    build: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


class Adapter(Protocol):
    """One engine."""

    about: About

    def convert(self, checkpoint: Path, target: Path, precision: str) -> None:
        """Write into the folder `target` what `load` reads. Nothing where it reads checkpoints as they are."""

    def load(self, load: Load) -> dict[str, str]:
        """Be ready to run. Returns what is worth knowing: version, which kernels run."""

    def prepare(self, batch: Batch) -> None:
        """Allocate for `batch`, beside the clock."""

    def run(self, batch: Batch) -> list[Tokens]:
        """Generate greedily to the very lengths; timed as a whole."""


def serve(adapter: Adapter) -> None:
    """Answer standard input until it ends or says stop."""
    _be_the_one_to_go()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print
    for line in sys.stdin:
        message = json.loads(line)
        if message["do"] == "stop":
            break
        try:
            answer = _answer(adapter, message)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:400]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    answers.close()
    # Some engines do not get out of their own destructors.
    sys.stderr.flush()
    os._exit(0)


def _be_the_one_to_go() -> None:
    """Where the system can: do not outlive the bench, and where memory runs out, be what is killed, not the bench."""
    try:
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, int(signal.SIGKILL))
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    except (AttributeError, OSError):
        pass  # not Linux


def _answer(adapter: Adapter, message: dict[str, Any]) -> dict[str, Any]:
    if message["do"] == "convert":
        adapter.convert(Path(message["checkpoint"]), Path(message["target"]), message["precision"])
        return {"ok": True}
    if message["do"] == "load":
        sizes = {name: message[name] for name in ("threads", "context", "running", "positions")}
        return {"ok": True, "facts": adapter.load(Load(Path(message["model"]), message["precision"], **sizes))}
    batch = Batch(
        [prompt for prompt, _ in message["requests"]],
        [output for _, output in message["requests"]],
        message["running"],
        message["shared"],
    )
    adapter.prepare(batch)
    started, cpu = time.perf_counter(), time.process_time()
    outputs = adapter.run(batch)
    return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu, "outputs": outputs}
