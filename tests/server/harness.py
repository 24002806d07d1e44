"""A server to test against: the real application over a real port, on a model folder that a test can make.

The executor follows a script unless a test asks for a real model, so that what a client should read is known
beforehand, at any speed, with any fault.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai

from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.recent import Recent
from armillary.core.scheduler import Scheduler
from armillary.deployment import ServerSettings
from armillary.models.pooling import PoolingSpec
from armillary.models.tokenizer import Tokenizer
from armillary.runtime.clock import WallClock
from armillary.server.aside import aside
from armillary.server.life import Life
from armillary.server.listener import listen, url_of
from armillary.server.served import Served
from armillary.server.service import Service
from server.scripted import NAME, SCRIPT, VOCAB, ScriptedExecutor, torch_executor, write_model, write_tokenizer

__all__ = ["NAME", "SCRIPT", "Running", "ScriptedExecutor", "frames", "torch_executor", "write_model"]


class Running:
    """A server in a thread, and clients of it."""

    def __init__(
        self,
        folder: Path,
        executor: Any = None,
        settings: ServerSettings | None = None,
        patience_s: float = 60.0,
        vocab_size: int = VOCAB,
        defaults: dict[str, Any] | None = None,
        before_load: Callable[[], object] = lambda: None,
        recent_steps: int = 4096,
        pooling: PoolingSpec | None = None,
        send_buffer: int | None = None,
        **limits: Any,
    ) -> None:
        self.executor = executor or ScriptedExecutor()
        self.settings = settings or ServerSettings(port=0, drain_s=2.0)
        self.service = Service(self.settings, NAME, patience_s)
        self.engine: Engine | None = None
        self.error: BaseException | None = None
        self._clients: dict[Any, openai.OpenAI] = {}
        self._http = httpx.Client(timeout=60)
        self._config = SchedulerConfig(**{"num_blocks": 256, "max_context": 512, "block_size": 8, **limits})
        self._folder = folder
        self._vocab_size = vocab_size
        self._defaults = defaults or {}
        self._before_load = before_load
        self._pooling = pooling
        self._recent = Recent(recent_steps) if recent_steps else None
        listener = listen("127.0.0.1", 0)
        if send_buffer is not None:  # else the kernel takes some megabytes that no client reads
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.url = url_of(listener)
        self._life: Life | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, args=(listener,), daemon=True)
        self._thread.start()

    def _run(self, listener: Any) -> None:
        self._life = Life(self.service, listener, self._start)
        try:
            self._life.run()
        except BaseException as error:
            self.error = error

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self.service.open(await aside(lambda: self._load(loop), "load"))

    def _load(self, loop: asyncio.AbstractEventLoop) -> Served:
        self._before_load()
        if not self._folder.joinpath("tokenizer.json").exists():
            write_tokenizer(self._folder)
        tokenizer = Tokenizer.from_folder(self._folder)
        self.engine = Engine(
            Scheduler(self._config), self.executor, WallClock(), lambda events: None, recent=self._recent
        )
        served = Served.start(
            NAME,
            self.engine,
            tokenizer,
            self._vocab_size,
            self._defaults,
            lambda: secrets.randbits(63),
            self.service.metrics,
            loop,
            self._pooling,
        )
        self._loop = loop
        return served

    def wait(self, path: str = "/ready", status: int = 200, seconds: float = 60.0) -> None:
        """Until a probe answers so."""
        until = time.monotonic() + seconds
        last: Any = None
        while time.monotonic() < until:
            try:
                last = self.get(path).status_code
                if last == status:
                    return
            except httpx.TransportError as error:
                last = error
            time.sleep(0.02)
        raise AssertionError(f"{path} must answer {status}, given {last!r} after {seconds} s")

    def stop(self, seconds: float = 60.0) -> None:
        if self._loop is not None and self._life is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._life.stop)
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the server must stop"

    def begin_to_stop(self) -> None:
        assert self._loop is not None and self._life is not None
        self._loop.call_soon_threadsafe(self._life.stop)

    def client(self, retries: int = 0, **options: Any) -> openai.OpenAI:
        options.setdefault("api_key", "none")
        key = (retries, *sorted(options.items()))
        if key not in self._clients:
            self._clients[key] = openai.OpenAI(base_url=f"{self.url}/v1", max_retries=retries, timeout=60, **options)
        return self._clients[key]

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self._http.get(self.url + path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        if body is not None:
            options["json"] = body
        return self._http.post(self.url + path, **options)

    def metrics(self) -> dict[str, float]:
        """Sample (with its labels, except for the model's) -> value, over all models."""
        found: dict[str, float] = {}
        for line in self.get("/metrics").text.splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = re.sub(r'model="[^"]*",?', "", name).replace(",}", "}").replace("{}", "")
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def quiet(self, seconds: float = 1.0) -> dict[str, float]:
        """The gauges once they are all zero; fails if that takes longer."""
        until = time.monotonic() + seconds
        while True:
            gauges = {
                name: value
                for name, value in self.metrics().items()
                if name in ("armillary_sequences_running", "armillary_sequences_waiting", "armillary_kv_blocks_used")
            }
            if not any(gauges.values()) or time.monotonic() > until:
                assert gauges and not any(gauges.values()), gauges
                return gauges
            time.sleep(0.02)


def frames(response: httpx.Response) -> list[str]:
    """The raw events of a stream, each without its `data: `; comments left out."""
    text = response.text
    assert text.endswith("\n\n")
    events = text[:-2].split("\n\n")
    assert all("\n" not in event for event in events), "an event must be one line"
    return [event.removeprefix("data: ") for event in events if not event.startswith(":")]
