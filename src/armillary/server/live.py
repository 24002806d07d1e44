"""`GET /v1/engine` and its stream: an engine at work, for people who look at it.

Snapshots are copied in the engine's thread, between two steps, when somebody wants one and the latest is older
than `FRESH_S`; all who watch share them. Nothing is computed while nobody watches.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, NotRequired

from fastapi import FastAPI, Query, Request
from starlette.responses import Response
from typing_extensions import TypedDict

from armillary.core.engine import Engine
from armillary.core.recent import StepRecord
from armillary.core.snapshot import KEPT, Snapshot, take_snapshot
from armillary.errors import ArmillaryError, Code
from armillary.server.endpoint import json_response
from armillary.server.errors import error_response
from armillary.server.openapi import GUARDED, described
from armillary.server.requests import Window
from armillary.server.served import Served
from armillary.server.service import Service
from armillary.server.sse import EventStream

FRESH_S = 0.45
"""Age up to which a snapshot is shown again: no engine is asked more than twice a second."""
FASTEST_S, SLOWEST_S = 0.5, 10.0
PATIENCE_S = 2.0
"""Seconds that `/v1/engine` waits for a step to end before it says that the engine is busy."""
MOST_WAITING = 200
FIRST_STEPS, MOST_STEPS = 240, 1000
"""Steps in a first snapshot, and in a later one."""
STEP_COLUMNS = (
    "index", "started_s", "ended_s", "prefill_tokens", "decode_tokens", "sequences", "admitted", "preempted",
)  # fmt: skip


class SequenceCard(TypedDict):
    owner: int
    id: str | None
    """None where it is not for who asks to know."""
    choice: int
    state: Literal["running", "waiting", "preempted"]
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    generated_tokens: int
    max_tokens: int
    blocks: int
    age_s: float
    priority: int


class Blocks(TypedDict):
    """The pool. `map` is all of it in runs of length, owner, holders; `changes` has block, owner, holders."""

    total: int
    used: int
    shared: int
    cached: int
    free: int
    map: NotRequired[list[int]]
    changes: NotRequired[list[int]]


class Steps(TypedDict):
    columns: list[str]
    rows: list[tuple[int, float, float, int, int, int, int, int]]


class EngineSnapshot(TypedDict):
    """An engine between two steps."""

    object: Literal["engine.snapshot"]
    model: str
    models: list[str]
    engine: str
    time: float
    clock_s: float
    progress_s: float
    limits: dict[str, Any]
    counters: dict[str, Any]
    running: int
    waiting: int
    sequences: list[SequenceCard]
    blocks: Blocks
    steps: Steps
    window: Window


class EngineBusy(TypedDict):
    """Instead of a snapshot, while one step takes longer than the interval."""

    object: Literal["engine.busy"]
    model: str
    time: float
    progress_s: float


@dataclass(frozen=True, slots=True)
class View:
    """A snapshot as it is kept for all who watch: without what only the engine may hold on to."""

    taken: float
    """Monotonic seconds."""
    created: float
    body: dict[str, Any]
    """What all who watch are shown alike."""
    askers: list[str]
    """Of each sequence, whose request it is."""
    owners: list[int]
    holders: list[int]
    steps: list[StepRecord]


class Lookout:
    """Keeps the latest view of each engine. In the event loop's thread."""

    def __init__(self) -> None:
        self._latest: dict[str, View] = {}
        self._pending: dict[str, asyncio.Task[View]] = {}

    async def view(self, served: Served, timeout_s: float) -> View | None:
        """The latest view if it is fresh, else a new one; None where the engine's step takes longer than that.

        Raises:
            ArmillaryError: the engine has stopped or died.
        """
        latest = self._latest.get(served.epoch)
        if latest is not None and time.monotonic() - latest.taken < FRESH_S:
            return latest
        task = self._pending.get(served.epoch)
        if task is None:
            task = asyncio.ensure_future(self._look(served))
            task.add_done_callback(_retrieve)
            self._pending[served.epoch] = task
        try:
            return await asyncio.wait_for(asyncio.shield(task), timeout_s)
        except TimeoutError:
            return None

    async def _look(self, served: Served) -> View:
        try:
            snapshot = await asyncio.wrap_future(served.worker.call(_take))
            view = await asyncio.to_thread(_view, snapshot, time.monotonic(), time.time())
            self._latest[served.epoch] = view
            for epoch, old in list(self._latest.items()):
                if view.taken - old.taken > 2 * SLOWEST_S:  # nobody watches it any more, or it is gone
                    del self._latest[epoch]
            return view
        finally:
            del self._pending[served.epoch]


def add_live(app: FastAPI, service: Service) -> None:
    """Add the two endpoints."""
    lookout = Lookout()

    @app.get("/v1/engine")
    @described(answer=EngineSnapshot, query={"model": str}, errors=(*GUARDED, Code.MODEL_NOT_FOUND))
    async def engine(model: Annotated[str | None, Query()] = None) -> Response:
        """One snapshot of an engine."""
        served = _chosen(service, model)
        view = await lookout.view(served, PATIENCE_S)
        if view is None:
            raise ArmillaryError(
                Code.UNAVAILABLE, f"the engine is in one step since {served.worker.progress:.1f} seconds; ask again"
            )
        return json_response(_whole(service, served, view, view.steps[-FIRST_STEPS:]))

    @app.get("/v1/engine/stream")
    @described(
        answer=None,
        stream=EngineSnapshot | EngineBusy,
        query={"model": str, "interval": Annotated[float, Query(ge=FASTEST_S, le=SLOWEST_S)]},
        errors=(*GUARDED, Code.MODEL_NOT_FOUND),
    )
    async def stream(
        request: Request,
        model: Annotated[str | None, Query()] = None,
        interval: Annotated[float, Query(ge=FASTEST_S, le=SLOWEST_S)] = FASTEST_S,
    ) -> Response:
        """Snapshots of an engine, the first one whole, until the client leaves or the engine stops."""
        return EventStream(
            _watch(service, lookout, _chosen(service, model), interval),
            render=lambda error: error_response(error, service.retry_after(), request.url.path),
            patience_s=service.reader_patience_s,
            on_slow_reader=lambda: None,
            on_end=lambda: None,
        )


async def _watch(
    service: Service, lookout: Lookout, served: Served, interval: float
) -> AsyncGenerator[list[dict[str, Any]], None]:
    """Events for one who watches, one in each interval."""
    seen: View | None = None
    while True:
        begun = time.monotonic()
        view = await lookout.view(served, interval)
        if view is None:
            yield [
                {
                    "object": "engine.busy",
                    "model": served.name,
                    "time": time.time(),
                    "progress_s": served.worker.progress,
                }
            ]
        elif seen is None:
            yield [_whole(service, served, view, view.steps[-FIRST_STEPS:])]
        elif view is not seen:
            yield [_later(service, served, view, seen)]
        seen = view or seen
        await asyncio.sleep(max(0.0, begun + interval - time.monotonic()))


def _chosen(service: Service, name: str | None) -> Served:
    """The engine to look at. Looking loads nothing and wakes nothing.

    Raises:
        ArmillaryError: MODEL_NOT_FOUND; UNAVAILABLE while there is no engine.
    """
    if name is not None:
        place = service.shelf.find(name)
        if place.served is None:
            raise ArmillaryError(Code.UNAVAILABLE, f"{place.name!r} has no engine to look at: it is {place.state}")
        return place.served
    if service.served is None:
        raise ArmillaryError(Code.UNAVAILABLE, f"there is no engine to look at: {service.trouble}")
    return service.served


def _take(engine: Engine) -> Snapshot:
    return take_snapshot(engine, MOST_WAITING, MOST_STEPS)


def _view(snapshot: Snapshot, taken: float, created: float) -> View:
    config = snapshot.config
    owners, holders = snapshot.owners(), snapshot.holders
    used = len(holders) - holders.count(0)
    kept = owners.count(KEPT)
    body = {
        "clock_s": snapshot.now,
        "limits": {
            "max_running": config.max_running,
            "max_waiting": config.max_waiting,
            "max_step_tokens": config.max_step_tokens,
            "max_chunk_tokens": config.max_chunk_tokens,
            "max_context": config.max_context,
            "block_size": config.block_size,
            "order": config.order,
            "prefix_cache": config.prefix_cache,
        },
        "counters": asdict(snapshot.counters),
        "running": snapshot.running,
        "waiting": snapshot.waiting,
        "sequences": [
            {
                "owner": s.uid,
                "id": s.request_id,
                "choice": s.choice,
                "state": "running" if s.running else "preempted" if s.preempted else "waiting",
                "prompt_tokens": s.prompt_tokens,
                "cached_tokens": s.cached_tokens,
                "computed_tokens": s.computed_tokens,
                "generated_tokens": s.generated_tokens,
                "max_tokens": s.max_tokens,
                "blocks": len(s.blocks),
                "age_s": s.age_s,
                "priority": s.priority,
            }
            for s in snapshot.sequences
        ],
        "blocks": {
            "total": len(holders),
            "used": used,
            "shared": used - holders.count(1),
            "cached": kept,
            "free": len(holders) - used - kept,
        },
    }
    return View(taken, created, body, [s.owner for s in snapshot.sequences], owners, holders, snapshot.steps)


def _whole(service: Service, served: Served, view: View, steps: list[StepRecord]) -> dict[str, Any]:
    """A snapshot with the whole map."""
    runs: list[int] = []
    length, last = 0, (0, 0)
    for pair in zip(view.owners, view.holders, strict=True):
        if pair == last:
            length += 1
        else:
            if length:
                runs += (length, *last)
            length, last = 1, pair
    runs += (length, *last)
    return _event(service, served, view, {"map": runs}, steps)


def _later(service: Service, served: Served, view: View, seen: View) -> dict[str, Any]:
    """What is new since another snapshot of the same engine, or all of it where that is shorter."""
    known = seen.steps[-1].number if seen.steps else -1
    fresh = [record for record in view.steps if record.number > known]
    changes: list[int] = []
    if view.owners != seen.owners or view.holders != seen.holders:
        before = zip(seen.owners, seen.holders, strict=True)
        now = zip(view.owners, view.holders, strict=True)
        for block, (old, new) in enumerate(zip(before, now, strict=True)):
            if old != new:
                changes += (block, *new)
    if len(changes) > len(view.owners):
        return _whole(service, served, view, fresh)
    return _event(service, served, view, {"changes": changes}, fresh)


def _event(
    service: Service, served: Served, view: View, blocks: dict[str, list[int]], steps: list[StepRecord]
) -> dict[str, Any]:
    return {
        "object": "engine.snapshot",
        "model": served.name,
        "models": [each.name for each in service.loaded()],
        "engine": served.epoch,
        "time": view.created,
        "progress_s": served.worker.progress,
        **view.body,
        "sequences": [
            each if service.may_watch(owner) else {**each, "id": None}
            for each, owner in zip(view.body["sequences"], view.askers, strict=True)
        ],
        "blocks": {**view.body["blocks"], **blocks},
        "steps": {"columns": STEP_COLUMNS, "rows": [record[:8] for record in steps]},
        "window": service.requests.window(served.name),
    }


def _retrieve(task: asyncio.Task[View]) -> None:
    """An engine that stops while nobody waits any more is no news."""
    if not task.cancelled():
        task.exception()
