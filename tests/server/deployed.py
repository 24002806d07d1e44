"""A server of a whole deployment: real models that a test can make, loaded as `serve` loads them."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

from armillary.deployment import Deployment
from armillary.runtime.load import LoadedEngine
from armillary.runtime.stopwatch import Stopwatch
from armillary.server.keeper import Build, Keeper, Wanted
from armillary.server.serve import build
from armillary.server.shelf import State
from server.harness import Running

SMALL = {"block_size": 8, "kv_blocks": 64, "max_context": 256, "max_running": 4, "threads": 1}


class Deployed(Running):
    """A server in a thread over the models of a deployment."""

    def __init__(self, models: list[Any], engine: dict[str, Any] | None = None, build: Build = build, **server: Any):
        content = {"models": models, "engine": engine or SMALL, "server": {"port": 0, "drain_s": 5, **server}}
        self.deployment = Deployment.model_validate(content)
        self.said: list[str] = []
        self._build = build
        super().__init__(Path("unused"), settings=self.deployment.server)

    async def _start(self) -> None:
        self._loop = asyncio.get_running_loop()
        service, say = self.service, self.said.append
        keeper = Keeper(self.deployment, service.shelf, service.metrics, self._build, say, service.requests)
        self.service.keeper = keeper
        await keeper.open(Stopwatch("test"), service.accept)

    def wait(self, path: str = "/ready", status: int = 200, seconds: float = 60.0) -> None:
        """Until a probe answers so; where that is ready, until none of the models is being loaded any more."""
        super().wait(path, status, seconds)
        until = time.monotonic() + seconds
        while (path, status) == ("/ready", 200) and any(place.state == State.LOADING for place in self.service.shelf):
            assert time.monotonic() < until and self._thread.is_alive()
            time.sleep(0.02)

    def change(self, verb: str, model: str, **body: Any) -> Any:
        """Load, unload, put to sleep or wake; the answer's body, once it is done."""
        response = self.post(f"/v1/models/{verb}", {"model": model, "wait": True, **body})
        assert response.status_code == 200, response.text
        return response.json()

    def state(self, model: str) -> str:
        """A model's state."""
        state: str = self.get(f"/v1/models/{model}").json()["state"]
        return state


class Gate:
    """Builds as `serve` does, but waits at the gate of a model until it is let through."""

    def __init__(self) -> None:
        self.waits = threading.Event()
        self.opened = threading.Event()
        self.guarded: str | None = None

    def __call__(self, wanted: Wanted) -> LoadedEngine:
        if wanted.model.served_name == self.guarded:
            self.waits.set()
            assert self.opened.wait(60)
        return build(wanted)
