"""`armillary serve`: from a deployment to a server that answers, with what it will do said before it does it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from armillary.deployment import Deployment
from armillary.server.life import Life
from armillary.server.listener import listen, url_of
from armillary.server.served import Served
from armillary.server.service import Service

if TYPE_CHECKING:
    from armillary.runtime.load import LoadedEngine

SPINS = "4000"
"""Turns that a compute thread waits busily for work before it sleeps (GNU OpenMP, unless the environment says).

The default is 300,000, some milliseconds, which takes the cores from the thread that talks to clients and from all
other programs: measured on two cores, 16 streams of the bundled model are 1.3 to 3 times as fast with this value,
one stream is a fifth slower, and beside a busy program a step takes milliseconds instead of seconds.
"""

Say = Callable[[str], None]
Build = Callable[[Deployment, Say], "LoadedEngine"]


def build(deployment: Deployment, say: Say) -> LoadedEngine:
    """Find the model, say what its engine will take, and make it.

    The imports are here, so that the port is taken before torch loads.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read by the OpenMP runtime when torch loads it
    from armillary.models.locate import locate
    from armillary.runtime.load import build_engine

    return build_engine(
        locate(deployment.model.path), deployment.engine, lambda events: None, on_plan=lambda plan: say(str(plan))
    )


def serve(deployment: Deployment, build: Build = build, say: Say | None = None) -> None:
    """Serve until SIGTERM or SIGINT; returns when everything that ran has ended.

    Args:
        build: makes the engine; another one where a test or an embedding program has its own.
        say: takes the lines for the person at the terminal; None prints them.

    Raises:
        ArmillaryError: INVALID_DEPLOYMENT where the address cannot be taken; whatever loading finds;
            ENGINE_FAILED when the engine died.
    """
    started = time.monotonic()
    tell = say if say is not None else _print
    settings = deployment.server
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("armillary").setLevel(settings.log_level.upper())
    name = deployment.model.served_name
    with contextlib.closing(listen(settings.host, settings.port)) as listener:
        url = url_of(listener)
        service = Service(settings, name)
        welcome: list[str] = []

        def load(loop: asyncio.AbstractEventLoop) -> Served:
            loaded = build(deployment, tell)
            spec = loaded.spec
            served = Served.start(
                name,
                loaded.engine,
                loaded.tokenizer,
                spec.vocab_size,
                spec.sampling_defaults,
                loaded.seeds,
                service.metrics,
                loop,
            )
            welcome.extend(_welcome(loaded, name, url, time.monotonic() - started, bool(settings.api_keys)))
            return served

        def greet() -> None:
            for line in welcome:
                tell(line)

        Life(service, listener, load, greet).run()


def _welcome(loaded: LoadedEngine, name: str, url: str, took_s: float, keyed: bool) -> list[str]:
    """What the person at the terminal wants to know: where the time went, how to talk to it."""
    parts = {"imports": took_s - sum(loaded.phases.values()), **loaded.phases}
    phases = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in parts.items() if seconds >= 0.005)
    key = "-H 'Authorization: Bearer KEY' " if keyed else ""
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    return [
        f"ready in {took_s:.2f} s ({phases})",
        f"{name} at {url}/v1",
        f"try: curl {url}/v1/chat/completions {key}-H 'Content-Type: application/json' -d '{body}'",
    ]


def _print(line: str) -> None:
    print(line, flush=True)
