"""The models of a server: each in its place, with its names, its state and, while it is awake, its engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from enum import StrEnum
from operator import add
from typing import TYPE_CHECKING

from armillary.core.stats import SchedulerStats
from armillary.deployment import EngineSettings, ModelSettings
from armillary.errors import ArmillaryError, Code
from armillary.runtime.stopwatch import Stopwatch
from armillary.runtime.worker import WorkerStats
from armillary.server.metrics import EngineState
from armillary.server.served import Served

if TYPE_CHECKING:
    from armillary.runtime.load import Kept, LoadedEngine
    from armillary.runtime.memory_plan import MemoryPlan


class State(StrEnum):
    """Where a model is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    SLEEPING = "sleeping"
    WAKING = "waking"
    FAILED = "failed"
    UNLOADED = "unloaded"


_WHY_NOT = {
    State.LOADING: "it is loading",
    State.READY: "its engine has ended",
    State.DRAINING: "its last requests are being finished, and then it is taken away or put to sleep",
    State.SLEEPING: "it sleeps until it is woken (POST /v1/models/wake)",
    State.WAKING: "it is waking up",
    State.FAILED: "it could not be loaded",
    State.UNLOADED: "it has been taken away",
}


class Place:
    """One model of a server.

    Attributes:
        model: what the deployment, or whoever loaded it, says about it.
        engine: the settings of its engine, complete.
        served: what requests go to; None unless it is ready, or its last requests are being finished.
        loaded: the engine and its memory, as long as it has them; None too where somebody else owns the engine.
        kept: its weights, where it sleeps with them.
        plan: of its engine, or of the engine it had before it fell asleep.
        watch: the laps of the load or the wake that goes on or went last.
        weights_read, weights_total: bytes of weights read by it so far, and in all once the plan is made.
        change: the load, the wake, the sleep or the removal that goes on.
        error: why the last load or wake failed.
        freed: bytes of main memory that the process had less after the model last fell asleep.
        past: what its earlier engines have counted, so that counters never fall.
        seeds: draws seeds for requests that bring none; goes on over sleep, where a deployment sets a seed.
    """

    def __init__(self, model: ModelSettings, engine: EngineSettings) -> None:
        self.model = model
        self.engine = engine
        self.name = model.served_name
        self.created = int(time.time())
        self.state = State.SLEEPING
        self.served: Served | None = None
        self.loaded: LoadedEngine | None = None
        self.kept: Kept | None = None
        self.plan: MemoryPlan | None = None
        self.watch: Stopwatch | None = None
        self.weights_read = 0
        self.weights_total: int | None = None
        self.change: asyncio.Task[None] | None = None
        self.error: str | None = None
        self.freed: int | None = None
        self.past = SchedulerStats()
        self.seeds: Callable[[], int] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Under which clients may ask for it; the first is its own."""
        return (self.name, *self.model.aliases)

    @property
    def useful(self) -> bool:
        """Whether a request for it would be answered now, be it after a wake."""
        return self.state is State.READY or (
            self.model.wake_on_request and self.state in (State.SLEEPING, State.WAKING)
        )

    def retire(self) -> None:
        """The engine is gone; what it counted stays."""
        if self.served is not None:
            self.past = _added(self.past, self.served.worker.stats().counters)
            self.served = None

    @property
    def stats(self) -> EngineState:
        """What metrics read of it, earlier engines included."""
        if self.served is None:
            return EngineState(WorkerStats(self.past, *[0] * (len(fields(WorkerStats)) - 1)))
        state = self.served.state()
        return replace(state, stats=replace(state.stats, counters=_added(self.past, state.stats.counters)))

    def ready(self) -> Served:
        """What requests go to.

        Raises:
            ArmillaryError: UNAVAILABLE, with what the model is doing instead.
        """
        if self.state is not State.READY or self.served is None:
            why = _WHY_NOT[self.state] + (f" ({self.error})" if self.error else "")
            raise ArmillaryError(Code.UNAVAILABLE, f"the model {self.name!r} cannot answer now: {why}", "model")
        return self.served


class Shelf:
    """The places of a server's models. Lives in the event loop's thread; `stats` may be asked from any."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}

    def __iter__(self) -> Iterator[Place]:
        return iter(list(self._places.values()))

    def put(self, place: Place) -> None:
        """Add a model.

        Raises:
            ArmillaryError: INVALID_REQUEST where one of its names is taken.
        """
        if len(set(place.names)) < len(place.names):
            names = ", ".join(repr(name) for name in place.names)
            raise ArmillaryError(Code.INVALID_REQUEST, f"aliases must differ, given {names}", "aliases")
        for name in place.names:
            other = self._of(name)
            if other is not None:
                raise ArmillaryError(
                    Code.INVALID_REQUEST,
                    f"the name of a model must be free, given {name!r}, which {other.name!r} answers to, so unload "
                    "that one or choose another name",
                    "name",
                )
        self._places[place.name] = place

    def put_engine(self, served: Served) -> Place:
        """Add a model whose engine somebody else has made, and keeps."""
        place = Place(ModelSettings(path=served.name, name=served.name), EngineSettings())
        place.served, place.state = served, State.READY
        self.put(place)
        return place

    def remove(self, place: Place) -> None:
        """Take a model away."""
        self._places.pop(place.name, None)

    def find(self, name: str) -> Place:
        """The model of that name or alias.

        Raises:
            ArmillaryError: MODEL_NOT_FOUND, with the names there are.
        """
        place = self._of(name)
        if place is None:
            known = ", ".join(repr(known) for place in self for known in place.names)
            raise ArmillaryError(
                Code.MODEL_NOT_FOUND,
                f"the model {name[:200]!r} does not exist here; this server has {known or 'none'}",
                "model",
            )
        return place

    def _of(self, name: str) -> Place | None:
        place = self._places.get(name)
        return place or next((place for place in self if name in place.names), None)

    @property
    def served(self) -> list[Served]:
        """What has an engine now."""
        return [place.served for place in self if place.served is not None]

    @property
    def failure(self) -> str | None:
        """Why an engine died; None if none did."""
        for served in self.served:
            if served.worker.failure is not None:
                return self.about(served, served.worker.failure)
        return None

    def idlest(self) -> tuple[float, str]:
        """Seconds since the last progress of the engine that has work and made none for longest, and its model."""
        return max(((served.worker.progress, served.name) for served in self.served), default=(0.0, ""))

    def about(self, served: Served, text: str) -> str:
        """The text, with the model's name where there are several models."""
        return f"{text} (model {served.name!r})" if len(self._places) > 1 else text

    def states(self) -> dict[str, EngineState]:
        """What metrics read of every model that has, or had, an engine."""
        return {place.name: place.stats for place in self if place.served is not None or place.past.steps}

    def stats(self) -> WorkerStats | None:
        """All engines together; None while there is none."""
        each = [served.worker.stats() for served in self.served]
        if not each:
            return None
        counters = SchedulerStats()
        for stats in each:
            counters = _added(counters, stats.counters)
        gauges = {
            field.name: sum(getattr(stats, field.name) for stats in each)
            for field in fields(WorkerStats)
            if field.name != "counters"
        }
        return WorkerStats(counters=counters, **gauges)


def _added(one: SchedulerStats, other: SchedulerStats) -> SchedulerStats:
    """Counters of two engines as if they were one."""
    both = {
        field.name: (max if field.name.startswith("max_") else add)(
            getattr(one, field.name), getattr(other, field.name)
        )
        for field in fields(SchedulerStats)
        if field.name != "finished"
    }
    finished = {reason: count + other.finished.get(reason, 0) for reason, count in one.finished.items()}
    return SchedulerStats(**both, finished=finished)
