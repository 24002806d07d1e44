"""Who puts models on the shelf and takes them away, while the others serve.

One model is loaded at a time, so that each memory plan is made beside all that the others hold or may still
take; everything slow runs in threads of its own. What a client waits for goes on when it stops waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from armillary.deployment import Deployment, EngineSettings, ModelSettings
from armillary.deployment.settings import BUNDLED
from armillary.errors import ArmillaryError, Code
from armillary.models.calls.choose import reply_format
from armillary.runtime.memory import give_back, resident
from armillary.runtime.stopwatch import Stopwatch
from armillary.server.aside import aside
from armillary.server.metrics import ServerMetrics
from armillary.server.requests import RequestLog
from armillary.server.served import Served
from armillary.server.shelf import Place, Shelf, State

if TYPE_CHECKING:
    from armillary.runtime.load import Kept, LoadedEngine
    from armillary.runtime.memory_plan import MemoryPlan

log = logging.getLogger("armillary.server")

Say = Callable[[str], None]
STOP_S = 2.0
"""Seconds that a step gets to end when its engine is stopped."""


@dataclass(frozen=True)
class Wanted:
    """An engine to be built.

    Attributes:
        watch: books the phases; its current lap is the first of them.
        on_plan: is shown the plan before anything that it names is allocated.
        on_bytes: is told of every piece of the weights that has been read.
        promised: bytes that other engines of this process may still take.
        kept: weights that are in memory already.
    """

    model: ModelSettings
    engine: EngineSettings
    watch: Stopwatch
    on_plan: Callable[[MemoryPlan], None]
    on_bytes: Callable[[int], None]
    promised: int
    kept: Kept | None


Build = Callable[[Wanted], "LoadedEngine"]


class Keeper:
    """Changes what is on a shelf. Lives in the event loop's thread.

    Args:
        deployment: the models that are loaded at start, and whatever is loaded later takes its settings from.
        build: makes an engine; runs in a thread of its own.
        say: takes lines for the person at the terminal.
        requests: what remembers the steps of engines, and lets go of those that are gone.
    """

    def __init__(
        self,
        deployment: Deployment,
        shelf: Shelf,
        metrics: ServerMetrics,
        build: Build,
        say: Say,
        requests: RequestLog,
    ) -> None:
        self.deployment = deployment
        self.shelf = shelf
        self._metrics = metrics
        self._build = build
        self._say = say
        self._requests = requests
        self._loading = asyncio.Lock()

    async def open(self, watch: Stopwatch, on_ready: Callable[[], None] = lambda: None) -> None:
        """Load what the deployment wants awake, in its order, and list what it wants asleep.

        Those that must be downloaded are, all at the same time, and come after those that are here: none waits for
        another's network.

        Args:
            watch: books the time; its current lap ends as this begins, and another has begun when it ends.
            on_ready: called whenever a model is ready, while others may still be loading.

        Raises:
            ArmillaryError: whatever loading finds.
        """
        models = self.deployment.models
        for model in models:
            self.shelf.put(Place(model, self.deployment.engine_of(model)))
        waiting = [place for place in self.shelf if place.model.start == "awake"]
        for place in waiting:
            place.state = State.LOADING
        downloads = await _downloads(waiting) if len(waiting) > 1 else {}
        while waiting:
            here = [place for place in waiting if place.name not in downloads or downloads[place.name].done()]
            if not here:
                watch.begin("download")
                await asyncio.wait([downloads[each.name] for each in waiting], return_when=asyncio.FIRST_COMPLETED)
                watch.begin("opening")
                continue
            place = here[0]
            waiting.remove(place)
            if len(models) > 1:
                self._say(f"loading {place.name}")
            place.watch = watch.part("runtime")
            await self._begin(place, self._fill(place, self._say))
            watch.include(place.watch, then="opening", name=None if len(models) == 1 else place.name)
            on_ready()

    def load(self, model: ModelSettings, engine: EngineSettings) -> Place:
        """Begin to load a model that is not on the shelf, or failed to get there.

        Raises:
            ArmillaryError: INVALID_REQUEST where a name is taken.
        """
        old = next((place for place in self.shelf if place.name == model.served_name), None)
        if old is not None and old.state is State.FAILED:
            self.shelf.remove(old)
        place = Place(model, engine)
        self.shelf.put(place)
        place.state, place.watch = State.LOADING, Stopwatch("runtime")
        self._begin(place, self._fill(place, log.info))
        return place

    def wake(self, place: Place) -> asyncio.Task[None] | None:
        """Begin to wake a sleeping model, or join the wake that goes on; None where it is awake.

        Raises:
            ArmillaryError: UNAVAILABLE where it is being loaded or put away.
        """
        if place.state is State.READY:
            return None
        if place.state is State.WAKING and place.change is not None:
            return place.change
        if place.state is not State.SLEEPING:
            place.ready()
        place.state, place.watch = State.WAKING, Stopwatch("runtime")
        return self._begin(place, self._fill(place, log.info))

    async def woken(self, place: Place) -> None:
        """Wake a model for a request, and wait until it is awake. Whoever stops waiting leaves the wake going on.

        Raises:
            ArmillaryError: UNAVAILABLE where it cannot be woken, with the reason.
        """
        change = self.wake(place)
        if change is not None:
            try:
                await asyncio.shield(change)
            except Exception as error:  # the place keeps what it was
                raise ArmillaryError(
                    Code.UNAVAILABLE, f"the model {place.name!r} could not be woken: {place.error}", "model"
                ) from error

    def sleep(self, place: Place, keep_weights: bool, drain_s: float) -> asyncio.Task[None] | None:
        """Begin to put a model to sleep; None where it sleeps already and holds no more than it should.

        Args:
            keep_weights: keep them in memory, for a quick wake; else only the model's place remains.
            drain_s: seconds that running requests get to finish.

        Raises:
            ArmillaryError: UNAVAILABLE where it is neither awake nor asleep.
        """
        if place.state is State.SLEEPING and (keep_weights or place.kept is None):
            return None
        if place.state is not State.SLEEPING:
            place.ready()
        place.state = State.DRAINING
        return self._begin(place, self._empty(place, keep_weights, drain_s))

    def unload(self, place: Place, drain_s: float) -> asyncio.Task[None]:
        """Begin to take a model away.

        Raises:
            ArmillaryError: UNAVAILABLE while it is being loaded or put away.
        """
        if place.state in (State.LOADING, State.WAKING, State.DRAINING):
            place.ready()
        place.state = State.DRAINING
        return self._begin(place, self._remove(place, drain_s))

    # ---------------------------------------------------------------- inside

    def _begin(self, place: Place, change: Awaitable[None]) -> asyncio.Task[None]:
        """Let a change go on by itself. Whoever waits for the task is told of its error; the place keeps it."""
        task = asyncio.ensure_future(change)
        assert isinstance(task, asyncio.Task)  # noqa: S101  a coroutine becomes a task
        place.change = task
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _fill(self, place: Place, say: Say) -> None:
        """Give a place its engine: a new one, or again the one that it had before it slept."""
        woken = place.state is State.WAKING
        place.error, place.freed, place.weights_read, place.weights_total = None, None, 0, None
        try:
            async with self._loading:
                loaded = await aside(partial(self._built, place, say), f"load {place.name}")
                replies = reply_format(loaded.tokenizer.chat_template, place.model.calls, place.model.reasoning)
        except Exception as error:
            place.state = State.SLEEPING if woken else State.FAILED
            if place.watch is not None:
                place.watch.end()
            place.error = error.message if isinstance(error, ArmillaryError) else f"{type(error).__name__}: {error}"
            log.warning("the model %r could not be %s: %s", place.name, "woken" if woken else "loaded", place.error)
            raise
        place.loaded, place.plan, place.kept = loaded, loaded.plan, None
        place.seeds = place.seeds or loaded.seeds
        place.served = Served.start(
            place.name,
            loaded.engine,
            loaded.tokenizer,
            loaded.spec.vocab_size,
            loaded.spec.sampling_defaults,
            place.seeds,
            self._metrics,
            asyncio.get_running_loop(),
            loaded.pooling,
            replies,
        )
        place.state = State.READY
        log.info("the model %r is ready after %.2f s", place.name, sum(loaded.phases.values()))

    def _built(self, place: Place, say: Say) -> LoadedEngine:
        """The engine of a place. In a thread of its own."""
        others = [other.loaded for other in self.shelf if other is not place]
        promised = sum(loaded.outstanding for loaded in others if loaded is not None)
        assert place.watch is not None  # noqa: S101  set with the state

        def show(plan: MemoryPlan) -> None:
            place.weights_total = plan.weights
            say(str(plan))

        def count(added: int) -> None:
            place.weights_read += added

        try:
            return self._build(Wanted(place.model, _as_before(place), place.watch, show, count, promised, place.kept))
        except (MemoryError, RuntimeError) as error:
            # What numpy and torch say when the system gives them no memory, whatever the plan was.
            if isinstance(error, MemoryError) or "allocate" in str(error):
                raise ArmillaryError(Code.MEMORY, f"memory ran out while the model was loaded: {error}") from error
            raise

    async def _empty(self, place: Place, keep_weights: bool, drain_s: float) -> None:
        """End a place's engine once its requests have ended, and give its memory back: the place sleeps then."""
        before = await aside(resident, "memory")
        served, loaded = place.served, place.loaded
        place.error = None
        if served is not None:
            log.info(
                "the model %r: %d requests get %g s to end", place.name, served.worker.stats().open_requests, drain_s
            )
            await aside(partial(_end, served, drain_s), f"end {place.name}")
            if served.recent is not None:
                self._requests.forget(served.recent)
            place.retire()
        if loaded is not None:
            place.kept = loaded.keep() if keep_weights else None
            loaded.release()
        elif not keep_weights:
            place.kept = None
        place.loaded = served = loaded = None
        await aside(give_back, "memory")
        place.freed = before - await aside(resident, "memory")
        place.state = State.SLEEPING

    async def _remove(self, place: Place, drain_s: float) -> None:
        await self._empty(place, False, drain_s)
        place.state = State.UNLOADED
        self.shelf.remove(place)


async def _downloads(places: Sequence[Place]) -> dict[str, asyncio.Task[None]]:
    """The downloads that some models need, begun, by name. What goes wrong in one, its load finds again and tells."""
    names = {place.name: place.model.path for place in places}
    remote = {name: path for name, path in names.items() if path != BUNDLED and not Path(path).expanduser().exists()}
    if not remote:
        return {}
    from armillary.models import locate

    async def fetch(path: str) -> None:
        with contextlib.suppress(Exception):
            await aside(partial(locate.locate, path), "download")

    here = await aside(lambda: [name for name, path in remote.items() if locate.is_here(path)], "look")
    return {name: asyncio.ensure_future(fetch(path)) for name, path in remote.items() if name not in here}


def _end(served: Served, drain_s: float) -> None:
    """Let the requests of an engine end, then the engine."""
    served.worker.drain(drain_s)
    served.worker.stop(STOP_S)


def _as_before(place: Place) -> EngineSettings:
    """The settings of a place's engine; of one that had an engine before, with all that its plan chose, so that
    a wake changes nothing that a client could notice."""
    plan = place.plan
    if plan is None:
        return place.engine
    chosen = {
        "dtype": plan.dtype,
        # Of an encoder, which keeps no keys and values, the plan chooses no blocks.
        **({"kv_blocks": plan.num_blocks, "kv_memory": None} if plan.kv else {}),
        "max_context": plan.max_context,
        "max_step_tokens": plan.max_step_tokens,
        "max_running": plan.max_running,
        "threads": plan.threads,
    }
    return place.engine.model_copy(update=chosen)
