"""A real `armillary serve` in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil
import yaml

SOURCES = Path(__file__).parents[2] / "src"
GAUGES = ("armillary_sequences_running", "armillary_sequences_waiting", "armillary_kv_blocks_used")


class Server:
    """Starts on entering and is killed on leaving, if it still runs then.

    Args:
        folder: holds the deployment file and the log.
        deployment: of `armillary serve`, without host and port.
        environment: variables besides this process's own.
    """

    def __init__(self, folder: Path, deployment: dict[str, Any], environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self._deployment = deployment
        self._environment = environment or {}
        self.url = ""

    def __enter__(self) -> Server:
        file = self.folder / "deployment.yaml"
        settings = {"host": "127.0.0.1", "port": 0, **self._deployment.get("server", {})}
        file.write_text(yaml.safe_dump({**self._deployment, "server": settings}))
        self.log = (self.folder / "server.log").open("ab+")
        start = self.log.seek(0, os.SEEK_END)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "armillary", "serve", str(file)],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(SOURCES), **self._environment},
        )
        self.resources = psutil.Process(self.process.pid)
        until = time.monotonic() + 120
        while time.monotonic() < until and self.process.poll() is None:
            said = self._said(start)
            if found := re.search(r"curl (http://\S+?)/v1/", said):
                self.url = found[1]
                return self
            time.sleep(0.05)
        raise AssertionError(f"the server must start, given exit status {self.process.poll()} and\n{self._said(start)}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.log.close()

    def _said(self, start: int) -> str:
        with (self.folder / "server.log").open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")

    @property
    def said(self) -> str:
        return self._said(0)

    def gauges(self) -> dict[str, float]:
        """Running, waiting and blocks in use, summed over whatever labels they carry."""
        found = dict.fromkeys(GAUGES, 0.0)
        for line in httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines():
            name = re.split(r"[{ ]", line, maxsplit=1)[0]
            if name in found:
                found[name] += float(line.rsplit(" ", 1)[1])
        return found

    def quiet(self, seconds: float = 5.0) -> None:
        """Fails unless nothing runs, waits or holds a block within some seconds."""
        until = time.monotonic() + seconds
        while any(gauges := self.gauges().values()):
            assert time.monotonic() < until, self.gauges()
            time.sleep(0.05)
        assert not any(gauges)
