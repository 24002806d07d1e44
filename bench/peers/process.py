"""The process of one engine: started, asked, watched over, ended."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from .environments import ROOT, Engine, Unavailable, processors
from .workloads import Workload

START_SECONDS = 600.0
CONVERT_SECONDS = 1800.0


class Process:
    """An engine in a process of its own, its adapter answering.

    Every call raises Unavailable: what the engine answered, its end, or that it took too long, after which the process
    is gone.

    Args:
        python: of the engine's environment.
        log: where its standard error goes.
    """

    def __init__(self, engine: Engine, python: Path, threads: int, log: Path) -> None:
        about = engine.load().about
        log.parent.mkdir(parents=True, exist_ok=True)
        cpus = ",".join(str(cpu) for cpu in processors()[:threads])
        own = {name: value.format(env=python.parents[1], cpus=cpus) for name, value in about.environment.items()}
        self.threads = threads
        self.log = log
        with log.open("a", encoding="utf-8") as errors:
            self._popen = subprocess.Popen(
                [str(python), "-m", engine.module],
                cwd=ROOT,
                # Whatever the engine uses, it uses so many threads.
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", **own},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        if self._popen.stdin is None or self._popen.stdout is None:
            raise TypeError("both ends of a process are pipes here")
        self._write, self._read = self._popen.stdin, self._popen.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._read, selectors.EVENT_READ)

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def convert(self, checkpoint: Path, target: Path, precision: str) -> None:
        """Write what the engine loads, into an existing folder."""
        paths = {"checkpoint": str(checkpoint), "target": str(target)}
        self._ask({"do": "convert", **paths, "precision": precision}, CONVERT_SECONDS)

    def load(self, model: Path, precision: str, workloads: Sequence[Workload]) -> dict[str, str]:
        """Load the model for these workloads; what the engine says of itself."""
        sizes = {
            "threads": self.threads,
            "context": max(workload.longest for workload in workloads),
            "running": max(workload.running for workload in workloads),
            "positions": max(workload.positions for workload in workloads),
        }
        answer = self._ask({"do": "load", "model": str(model), "precision": precision, **sizes}, START_SECONDS)
        facts: dict[str, str] = answer["facts"]
        return facts

    def run(self, workload: Workload, seconds: float, output: int | None = None) -> tuple[float, list[list[int]]]:
        """Seconds that the engine took, and the tokens it generated. One thread is timed by the processor, so that
        other work on the machine counts little; several by the wall.

        Args:
            seconds: how long to wait.
            output: generate so many tokens of each request instead.
        """
        requests = [(list(request.prompt), output or request.output) for request in workload.requests]
        message = {"do": "run", "requests": requests, "running": workload.running, "shared": workload.shared}
        answer = self._ask(message, seconds)
        outputs: list[list[int]] = answer["outputs"]
        if [len(tokens) for tokens in outputs] != [wanted for _, wanted in requests]:
            raise Unavailable("did not generate as many tokens as it was asked for")
        return float(answer["cpu" if self.threads == 1 else "seconds"]), outputs

    def forget_peak(self) -> None:
        """Let `peak` begin anew, where the system can."""
        try:
            Path(f"/proc/{self._popen.pid}/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            pass  # then the peak is that of the whole process

    def peak(self) -> int:
        """Most bytes of main memory that the process occupied since `forget_peak`, files that it maps included."""
        try:
            status = Path(f"/proc/{self._popen.pid}/status").read_text(encoding="ascii")
            return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
        except (OSError, StopIteration):
            return int(psutil.Process(self._popen.pid).memory_info().rss)

    def close(self) -> None:
        """End the process. Idempotent."""
        if self.alive:
            try:
                self._write.write('{"do": "stop"}\n')
                self._write.flush()
                self._popen.wait(10)
            except (OSError, subprocess.TimeoutExpired):
                self._popen.kill()
                self._popen.wait()
        self._selector.close()
        for pipe in (self._write, self._read):
            try:
                pipe.close()
            except OSError:
                pass  # it was gone before it had read everything

    def _ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            self._write.write(json.dumps(message) + "\n")
            self._write.flush()
        except OSError:
            raise Unavailable(self._end()) from None
        deadline = time.monotonic() + seconds
        # An answer is one line, written at once; the rest of it follows its first byte.
        if not self._selector.select(max(0.0, deadline - time.monotonic())):
            self._popen.kill()
            self.close()
            raise Unavailable(f"took more than {seconds:.0f} s to {message['do']}")
        line = self._read.readline()
        if not line:
            raise Unavailable(self._end())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer

    def _end(self) -> str:
        """How the process ended by itself."""
        status = self._popen.wait()
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        words = next((line.strip() for line in reversed(lines) if line.strip()), "")
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return f"its process ended with {how}: {words}"[:300]
