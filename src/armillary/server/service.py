"""What all endpoints share: the model once it is loaded, the phase of life, and what is in flight."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from armillary.deployment import ServerSettings
from armillary.errors import ArmillaryError, Code
from armillary.runtime.worker import WorkerStats
from armillary.server.body import BodyBudget
from armillary.server.exchange import current
from armillary.server.keys import Keyring
from armillary.server.metrics import EngineState, ServerMetrics
from armillary.server.requests import RequestLog
from armillary.server.served import Served
from armillary.server.shelf import Shelf, State
from armillary.server.tally import Tally

if TYPE_CHECKING:
    from armillary.server.keeper import Keeper

BODIES = 4
"""How many bodies of the largest size may be held at once. Parsed, each takes several times its size."""


class Phase(StrEnum):
    """Where a server is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Service:
    """The state behind the endpoints. Lives in the event loop's thread.

    Args:
        settings: limits and patience.
        name: the model that will be the first one once it is loaded.
        reader_patience_s: seconds that one write to a client may wait.
    """

    def __init__(self, settings: ServerSettings, name: str, reader_patience_s: float = 60.0) -> None:
        self.settings = settings
        self._name = name
        self.reader_patience_s = reader_patience_s
        self.phase = Phase.LOADING
        self.shelf = Shelf()
        self.keeper: Keeper | None = None
        """Who loads and unloads; None where the engine is somebody else's."""
        self.in_flight = 0
        self.keys = Keyring(settings)
        self.bodies = BodyBudget(BODIES * settings.max_body)
        self.metrics = ServerMetrics(self.states, lambda: self.trouble is None, lambda: self.in_flight)
        self.requests = RequestLog()

    @property
    def name(self) -> str:
        """The first model of the server, for requests that name none."""
        return next((place.name for place in self.shelf), self._name)

    def open(self, served: Served) -> None:
        """An engine that was made elsewhere is ready: accept requests."""
        self.shelf.put_engine(served)
        self.phase = Phase.READY

    def accept(self) -> None:
        """A model is ready: accept requests from now on, while others may still be loading."""
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY

    def check_open(self) -> None:
        """Raise UNAVAILABLE, with what the server is doing instead, unless requests are accepted now."""
        if self.phase is not Phase.READY:
            raise ArmillaryError(Code.UNAVAILABLE, f"the server accepts no requests now: it is {self.phase}")

    async def model(self, name: str) -> Served:
        """The model that a request names, ready to compute.

        Raises:
            ArmillaryError: MODEL_NOT_FOUND; UNAVAILABLE while it cannot answer, with what it is doing instead.
        """
        self.check_open()
        place = self.shelf.find(name)
        if self.keeper is not None and place.model.wake_on_request and place.state in (State.SLEEPING, State.WAKING):
            await self.keeper.woken(place)
        return place.ready()

    def begin(self, endpoint: str) -> Tally:
        """A generation request has arrived; `finish` must follow."""
        self.in_flight += 1
        return Tally(self.metrics, endpoint, self.requests)

    def finish(self, tally: Tally) -> None:
        """The request is over. One that nobody ended was left by its client."""
        self.in_flight -= 1
        tally.finish()

    def may_watch(self, owner: str) -> bool:
        """Whether who asks now may see the requests of this owner."""
        exchange = current.get()
        return self.settings.watch == "all" or (exchange is not None and exchange.owner == owner)

    def loaded(self) -> list[Served]:
        """The models whose engines exist now, the default one first."""
        return self.shelf.served

    @property
    def served(self) -> Served | None:
        """The first of them."""
        return next(iter(self.shelf.served), None)

    def states(self) -> dict[str, EngineState]:
        """What metrics read of each model's engines, those that are gone included, by model."""
        return self.shelf.states()

    @property
    def trouble(self) -> str | None:
        """Why requests would not be answered now; None where they would."""
        if self.phase is not Phase.READY:
            return f"the server is {self.phase}"
        if not any(place.useful for place in self.shelf):
            each = ", ".join(f"{place.name} is {place.state}" for place in self.shelf)
            return f"no model is ready: {each or 'none is loaded'}"
        return None

    def stalled(self) -> str | None:
        """Which engine has work and has finished no step for longer than the patience with it; None for none."""
        idle, model = self.shelf.idlest()
        if idle <= self.settings.stall_s:
            return None
        return f"the engine of {model!r} has work and has finished no step for {idle:.1f} seconds"

    def retry_after(self) -> float:
        """Seconds after which a refused request may be tried again, where the refusal does not know them itself."""
        return max((served.worker.seconds_to_work_off() or 0.0 for served in self.loaded()), default=0.0)

    def check_room(self) -> None:
        """Refuse before a body is read, where no model's queue has room for what it may hold.

        Raises:
            Refused: QUEUE_FULL.
        """
        refusals = [served.worker.full() for served in self.loaded()]
        if refusals and all(refusals) and refusals[0] is not None:
            raise refusals[0]

    def stats(self) -> WorkerStats | None:
        """All engines together; None while there is none."""
        return self.shelf.stats()
