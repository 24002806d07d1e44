"""One engine of a simulated deployment."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from armillary.core.clock import VirtualClock
from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.journal import Journal
from armillary.core.leap import Leap
from armillary.core.prefix import block_digest
from armillary.core.request import Request
from armillary.core.scheduler import Scheduler
from armillary.core.step import Event
from armillary.errors import ArmillaryError, Code
from armillary.twin.cost import CostModel
from armillary.twin.executor import VirtualExecutor
from armillary.twin.work import StepWork

Hear = Callable[[float, list[Event]], None]
"""Is told the time and what happened then, in the order in which it happened."""


class Replica:
    """The engine that serves requests, under a clock of its own that jumps.

    Whoever owns it lets it live up to the moment at which something reaches it, and hands that over:

        replica.advance(arrival)
        replica.submit(request)

    A step that begins before that moment may end after it. The request then waits for the end of the step, as it
    would at the door of a real engine.

    Args:
        config: as the real engine's: KV blocks, budgets and policies are read, never guessed.
        hear: receives every piece of news; it must not call back into the replica.
        start: the time at which its clock starts.
        vary: as of `VirtualExecutor`.
        leap: take steps that are provably alike in one, and know blocks by cheaper digests. Then `hear` is told of what
            ends requests, and not of the tokens of the steps between. Results do not change.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        cost: CostModel,
        hear: Hear,
        *,
        name: str = "",
        start: float = 0.0,
        journal: Journal | None = None,
        vary: Callable[[float], float] | None = None,
        leap: bool = False,
    ) -> None:
        self.name = name
        self.config = config
        self.clock = VirtualClock(start)
        self.executor = VirtualExecutor(cost, vary)
        self.alive = True
        """False from `fail` until `recover`."""
        self._hear = hear
        self._journal = journal
        self._leap = leap
        self._blocked = False
        """Whether what waits has no room beside blocks that ended requests hold."""
        self._open: dict[str, Request] = {}
        self._outstanding = 0
        self.engine = self._new_engine()

    def _new_engine(self) -> Engine:
        self._seen = 0
        """Steps of this engine whose use of blocks was noted."""
        scheduler = Scheduler(self.config, quick_digest if self._leap else block_digest)
        return Engine(scheduler, self.executor, self.clock, self._sink, self._journal, leapt=self._leapt)

    # ---------------------------------------------------------------- time

    @property
    def next_time(self) -> float:
        """When its next step begins; inf while there is nothing to do, or nothing can be done before a release."""
        return inf if self.engine.idle or self._blocked else self.clock.now()

    @property
    def next_end(self) -> float:
        """A time before which no step begins with which a request may end, if nothing is handed over before; inf while
        there is nothing to do."""
        now, certain = self.next_time, self.engine.certain_steps() if self._leap else 0
        formation = self.engine.formation
        if certain < 2 or formation is None or not self.executor.steady:
            return now
        count, context = len(formation.marchers), formation.context()
        least = self.executor.cost.step_s(StepWork(count, count, count, context, context))
        return now + (certain - 1) * least  # one less, since many sums round otherwise than one product

    def step(self, until: float) -> bool:
        """Take the next step if it begins before `until`; else, and where there is nothing to do, wait for `until`.

        Where it leaps, further steps follow that begin before `until`, up to the first that ends a request: until
        then, nothing may be submitted or cancelled.

        Returns:
            Whether a step was taken. If not, the replica's time is at or after `until`, or `until` is inf.
        """
        clock, engine = self.clock, self.engine
        if clock.now() < until:
            if not self._blocked and (engine.leap(until) if self._leap else engine.step()):
                return True
            self._blocked = not engine.idle
            if self._blocked and not engine.scheduler.held:
                raise RuntimeError("the scheduler has requests and offers no step")
            if until < inf:
                clock.advance_to(until)
        return False

    def advance(self, until: float) -> None:
        """Take every step that begins before `until`. What ends meanwhile must bring nothing sooner than that."""
        while self.step(until):
            pass

    # ---------------------------------------------------------------- requests

    def submit(self, request: Request) -> None:
        """Hand over a request at the replica's own time.

        Raises:
            ArmillaryError: as of `Engine.submit`; UNAVAILABLE while it has failed.
        """
        if not self.alive:
            raise ArmillaryError(Code.UNAVAILABLE, f"replica {self.name!r} has failed and takes no request")
        self.engine.submit(request)
        self._blocked = False
        self._open[request.id] = request
        if not request.handed:  # else another engine's server has read it
            self.executor.read(len(request.prompt))
        self._outstanding += _tokens(request)

    def cancel(self, request_id: str) -> None:
        """End a request at the replica's own time, whatever its state."""
        self.engine.cancel(request_id)
        self._blocked = False

    def release(self, request_id: str) -> None:
        """Give back the blocks that an ended request holds (`Request.hold`)."""
        self.engine.release(request_id)
        self._blocked = False

    def fail(self) -> list[Request]:
        """Lose everything: the requests that had not ended, in the order of submission, and the whole KV cache.

        Nobody is told of their end; whoever owns the replica may hand them to another.
        """
        lost = list(self._open.values())
        self._open.clear()
        self._outstanding = 0
        self._blocked = False
        self.alive = False
        self.engine = self._new_engine()
        return lost

    def recover(self, at: float) -> None:
        """Serve again, from `at` on, with an empty KV cache."""
        if at > self.clock.now():
            self.clock.advance_to(at)
        self.alive = True

    def end(self) -> None:
        """Let go of the engine, which holds the replica: what both hold is then freed at once. Nothing follows."""
        del self.engine

    # ---------------------------------------------------------------- what a router may know

    @property
    def running(self) -> int:
        return self.engine.scheduler.running_count

    @property
    def waiting(self) -> int:
        return self.engine.scheduler.waiting_count

    @property
    def outstanding_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    @property
    def outstanding_tokens(self) -> int:
        """Prompt tokens of the requests that have not ended, and all that they may generate."""
        return self._outstanding

    @property
    def free_blocks(self) -> int:
        return self.engine.scheduler.pool.free_count

    def _sink(self, events: list[Event], at: float | None = None) -> None:
        for event in [e for e in events if e.finish is not None]:
            request = self._open.get(event.request_id)
            if request is not None and not self.engine.scheduler.alive(request):  # else other choices go on
                del self._open[event.request_id]
                self._outstanding -= _tokens(request)
                self.executor.ended()
        steps = self.engine.scheduler.stats.steps
        if at is None and steps != self._seen:
            self._seen = steps
            self._use([self.free_blocks])
        self._hear(self.clock.now() if at is None else at, events)

    def _use(self, free: list[int]) -> None:
        """Note how many blocks were free after each of some steps."""
        totals, blocks = self.executor.totals, self.config.num_blocks
        totals.blocks += blocks * len(free) - sum(free)
        totals.peak_blocks = max(totals.peak_blocks, blocks - min(free))

    def _leapt(self, leap: Leap) -> None:
        self._seen = self.engine.scheduler.stats.steps
        self._use(leap.free)
        if leap.news:
            self._sink(leap.news, leap.times[0][1])
        if leap.ended:
            self._sink(leap.endings, leap.times[-1][1])


def quick_digest(parent: bytes | int, tokens: tuple[int, ...]) -> int:
    """Of a block, for an index that nobody else reads: 64 bits, a tenth of the time.

    Whole numbers are hashed alike in every process. The index compares tokens, so a collision would cost a hit, as
    one of the real digests would.
    """
    return hash((parent if isinstance(parent, int) else int.from_bytes(parent, "little"), tokens))


def _tokens(request: Request) -> int:
    return len(request.prompt) + request.n * request.max_tokens
