"""The process of one engine: started, asked, watched over, ended."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import psutil

from .environments import ROOT, Engine, Unavailable, end, processors
from .workloads import Workload

START_SECONDS = 600.0
CONVERT_SECONDS = 1800.0
END_SECONDS = 10.0
"""That a process has to end by itself."""


class Process:
    """An engine in a process of its own, its adapter answering.

    Every call raises Unavailable: what the engine answered, its end, or that it took too long, after which the process
    is gone, and whatever it started with it.

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
        with log.open("ab") as errors:
            self._said_before = errors.tell()
            self._popen = subprocess.Popen(
                [str(python), "-m", engine.module],
                cwd=ROOT,
                # Whatever the engine uses, it uses so many threads.
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", **own},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                process_group=0,  # what it starts is ended with it
            )
        if self._popen.stdin is None or self._popen.stdout is None:
            raise TypeError("both ends of a process are pipes here")
        self._write, self._read = self._popen.stdin, self._popen.stdout
        os.set_blocking(self._write.fileno(), False)

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
        """End the process and all that it started. Idempotent."""
        if self.alive:
            try:
                self._send(b'{"do": "stop"}\n', time.monotonic() + END_SECONDS)
                self._popen.wait(END_SECONDS)
            except (OSError, subprocess.TimeoutExpired):
                pass
        end(self._popen)
        self._write.close()
        self._read.close()

    def _ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        if self._write.closed:
            raise Unavailable("its process was ended before")
        deadline = time.monotonic() + seconds
        try:
            self._send(json.dumps(message).encode() + b"\n", deadline)
            line = self._receive(deadline)
        except TimeoutError:
            end(self._popen)
            self.close()
            raise Unavailable(f"took more than {seconds:.0f} s to {message['do']}") from None
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise Unavailable(self._end())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer

    def _send(self, data: bytes, deadline: float) -> None:
        """Raises TimeoutError: where nobody reads. OSError: where nobody will."""
        while data:
            self._await(self._write, selectors.EVENT_WRITE, deadline)
            try:
                data = data[os.write(self._write.fileno(), data) :]
            except BlockingIOError:
                continue

    def _receive(self, deadline: float) -> bytes:
        """A line, or what there is of it at the end of the process. Raises TimeoutError."""
        line = b""
        while not line.endswith(b"\n"):
            self._await(self._read, selectors.EVENT_READ, deadline)
            piece = os.read(self._read.fileno(), 1 << 16)
            if not piece:
                break
            line += piece
        return line

    def _await(self, pipe: IO[bytes], event: int, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, event)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError

    def _end(self) -> str:
        """How the process ended by itself, or that it would not."""
        try:
            status = self._popen.wait(END_SECONDS)
            how = f"signal {-status} ({signal.strsignal(-status)})" if status < 0 else f"status {status}"
        except subprocess.TimeoutExpired:
            how = "its output but not itself"
        end(self._popen)
        self.close()
        with self.log.open("rb") as log:
            log.seek(self._said_before)
            lines = log.read().decode("utf-8", errors="replace").split("\n")
        words = next((line.strip() for line in reversed(lines) if line.strip()), "no word")
        return f"its process ended with {how}: {words}"[:300]
