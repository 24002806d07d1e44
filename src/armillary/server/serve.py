"""`armillary serve`: from a deployment to a server that answers, with what it will do said before it does it."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from typing import TYPE_CHECKING

from armillary.deployment import Deployment
from armillary.models.pooling import Kind
from armillary.runtime.stopwatch import Stopwatch
from armillary.server import logs
from armillary.server.keeper import Build, Keeper, Say, Wanted
from armillary.server.life import Life
from armillary.server.listener import listen, url_of
from armillary.server.loading_bar import with_bar
from armillary.server.service import Service
from armillary.server.tracing import traced

if TYPE_CHECKING:
    from armillary.runtime.load import LoadedEngine

SPINS = "4000"
"""Turns that a compute thread waits busily for work before it sleeps (GNU OpenMP, unless the environment says).

The default is 300,000, some milliseconds, which takes the cores from the thread that talks to clients and from all
other programs: measured on two cores, 16 streams of the bundled model are 1.3 to 3 times as fast with this value,
one stream is a fifth slower, and beside a busy program a step takes milliseconds instead of seconds.
"""

PRODUCTS = "256"
"""Shapes of matrix products that oneDNN keeps compiled (unless the environment says), where torch computes.

Its default, 1,024, comes to some 250 MB within minutes of mixed load, which no memory plan knows of. A shape is a
number of rows times a weight's shape. 256 are more than decoding needs at 32 sequences, and a shape that was dropped
costs less than half a millisecond to compile again.
"""


def set_environment() -> None:
    """Set what libraries read from the environment when torch loads them; what the user has set stays."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:  # its older name, which the newer one would outdo
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PRODUCTS)


def collect_garbage_from_now_on() -> None:
    """Let Python look for garbage again where the command kept it from that, but not among what is there by now: the
    modules and the model stay, and going through them all would hold up whoever is being answered."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def build(wanted: Wanted) -> LoadedEngine:
    """Find a model, say what its engine will take, and make it.

    The imports are here, so that the port is taken before torch loads.
    """
    set_environment()
    from armillary.models.locate import locate
    from armillary.runtime.load import build_engine

    wanted.watch.begin("model")
    return build_engine(
        locate(wanted.model.path),
        wanted.engine,
        lambda events: None,
        on_plan=wanted.on_plan,
        watch=wanted.watch,
        on_bytes=wanted.on_bytes,
        promised=wanted.promised,
        kept=wanted.kept,
    )


def serve(deployment: Deployment, build: Build = build, say: Say | None = None, watch: Stopwatch | None = None) -> None:
    """Serve until SIGTERM or SIGINT; returns when everything that ran has ended.

    Args:
        build: makes an engine; another one where a test or an embedding program has its own.
        say: takes the lines for the person at the terminal; None prints them.
        watch: has booked what came before this call; None where that does not matter.

    Raises:
        ArmillaryError: INVALID_DEPLOYMENT where the address cannot be taken; whatever loading finds;
            ENGINE_FAILED when an engine died.
    """
    watch = watch or Stopwatch("listen")
    watch.begin("listen")
    tell = say if say is not None else _print
    if sys.stderr.isatty():
        build = with_bar(build)
    settings = deployment.server
    remarks = [] if deployment.fleet is None else deployment.fleet.remarks()
    logs.set_up(settings.log_format, settings.log_level)
    with contextlib.closing(listen(settings.host, settings.port)) as listener:
        watch.begin("application")
        url = url_of(listener)
        service = Service(settings, deployment.model.served_name)
        service.keeper = keeper = Keeper(deployment, service.shelf, service.metrics, build, tell, service.requests)

        def greet() -> None:
            collect_garbage_from_now_on()
            watch.end()
            for line in (*remarks, *_welcome(watch, service, url)):
                tell(line)

        with traced(settings, service.requests):
            Life(service, listener, lambda: keeper.open(watch, service.accept), greet).run()


ASKS: dict[Kind, tuple[str, str]] = {
    "decoder": ("chat/completions", '"messages": [{"role": "user", "content": "Hello!"}]'),
    "encoder": ("embeddings", '"input": "Hello!"'),
    "scorer": ("rerank", '"query": "Hello?", "documents": ["Hello!", "No."]'),
}
"""A request that each kind of model can answer: where it goes, and what it says beside the model."""


def _welcome(watch: Stopwatch, service: Service, url: str) -> list[str]:
    """What the person at the terminal wants to know: where the time went, how to talk to it."""
    ready = [place.served for place in service.shelf if place.served is not None]
    names = [served.name for served in ready]
    key = "-H 'Authorization: Bearer KEY' " if service.settings.api_keys else ""
    path, ask = ASKS[ready[0].kind if ready else "decoder"]
    body = f'{{"model": "{names[0] if names else service.name}", {ask}}}'
    return [
        f"ready in {watch.total:.2f} s ({phases(watch)})",
        *(f"{name} at {url}/v1" for name in names),
        *(f"{place.name} sleeps" for place in service.shelf if place.served is None),
        f"try: curl {url}/v1/{path} {key}-H 'Content-Type: application/json' -d '{body}'",
    ]


def phases(watch: Stopwatch) -> str:
    """Where the time went, all of it; what is too short to show is shown together."""
    long = {phase: seconds for phase, seconds in watch.laps.items() if seconds >= 0.005}
    rest = sum(watch.laps.values()) - sum(long.values())
    return ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in {**long, "the rest": rest}.items())


def _print(line: str) -> None:
    print(line, flush=True)
