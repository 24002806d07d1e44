"""The engine: scheduler, executor and clock in the one loop."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from armillary.core.clock import Clock, SteadyTime, VirtualClock
from armillary.core.deadlines import Deadlines
from armillary.core.formation import Formation
from armillary.core.journal import Journal
from armillary.core.leap import Foresight, Leap
from armillary.core.recent import Recent
from armillary.core.request import FinishReason, Request
from armillary.core.scheduler import Scheduler
from armillary.core.step import Event, Executor

Sink = Callable[[list[Event]], None]


class Engine:
    """Runs requests. Single-threaded: every method is called from the same thread.

    The same class serves under a wall clock and simulates under a virtual one: an executor that predicts
    sets `StepResult.duration`, and the clock is told to let that time pass.

    Args:
        sink: receives the events of each step and of each cancellation, in order. It must not call back
            into the engine.
        journal: records every accepted input and every decision; None for no record. Where writing a line
            fails, the error reaches the caller after the events have reached the sink.
        recent: keeps the latest steps in memory, from the same records; None to keep none.
        leapt: receives what was taken in one, instead of the sink; None leaves that to the sink, step by step.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        clock: Clock,
        sink: Sink,
        journal: Journal | None = None,
        recent: Recent | None = None,
        leapt: Callable[[Leap], None] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.clock = clock
        self.sink = sink
        self.journal = journal
        self.recent = recent
        self.leapt = leapt
        self._foresight = executor if isinstance(executor, Foresight) else None
        self.formation: Formation | None = None
        """Those that run, between two leaps. While there is one, counts of sequences stay behind (`settle`)."""
        self._time = SteadyTime(clock)
        self._deadlines = Deadlines(scheduler.alive)
        if journal is not None:
            journal.opened(scheduler.config)

    @property
    def idle(self) -> bool:
        """Whether no request is alive."""
        return self.scheduler.idle

    def now(self) -> float:
        """The engine's time, in which deadlines are: its clock's, made steady. From any thread."""
        return self._time.peek()

    def submit(self, request: Request) -> None:
        """Accept a request, or raise `ArmillaryError` with the reason."""
        now = self._time.read()
        self.scheduler.add(request, now)
        if self.journal is not None:
            try:
                self.journal.submitted(request, now)
            except BaseException:
                self.scheduler.cancel(request.id)  # who is told of an error must not be sent tokens
                raise
        if self.recent is not None:
            self.recent.submitted(request, now)
        self._deadlines.enter(request)

    def cancel(self, request_id: str, index: int | None = None, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """End a request, or one choice of it, whatever its state. Unknown or ended: nothing happens.

        `reason` STOP is how the text layer ends a choice in whose text it found a stop string.
        """
        self.settle()
        events = self.scheduler.cancel(request_id, index, reason)
        if events:
            now = self._time.read()
            if self.recent is not None:
                self.recent.ended(events, now)
            try:
                if self.journal is not None:
                    self.journal.cancelled(request_id, index, reason, now)
            finally:
                self.sink(events)

    def release(self, request_id: str) -> None:
        """Give back the blocks that an ended request holds (`Request.hold`). If it holds none, nothing happens."""
        if self.scheduler.held.release(request_id) and self.journal is not None:
            self.journal.released(request_id, self._time.read())

    def expire(self) -> None:
        """End the requests whose time is over. `step` begins with it."""
        self.settle()
        self._expire(self._time.read())

    def step(self) -> bool:
        """Choose and run one step and deliver its events; False if there was nothing to do.

        A request whose time is over when the step begins is not in it; one whose time is over when the step
        ends gets nothing of what was computed.
        """
        self.settle()
        started = self._time.read()
        self._expire(started)
        step = self.scheduler.next_step(started)
        if step is None:
            return False
        if self.recent is not None:
            self.recent.began(step, started)
        failure = None
        try:
            result = self.executor.run(step)
            result.check(step)
            if result.duration is not None:
                self.clock.advance(result.duration)
            failures = result.failures
        except Exception as error:  # a step that fails takes its own sequences with it, never the engine
            failure = f"{type(error).__name__}: {error}"
            failures = dict.fromkeys(range(len(step.entries)), failure)
        except BaseException:
            self.scheduler.abandon(step, started)
            raise
        ended = self._time.read()
        # First of all, so that the journal has every failure: one can send others back that computed from the same.
        events = self.scheduler.fail(step, failures, ended) if failures else []
        events += self._end_due(ended)
        if failure is None:
            events += self.scheduler.commit(step, result, ended, started)
        if self.recent is not None:
            self.recent.stepped(step, started, ended, events)
        try:
            if self.journal is not None:
                self.journal.stepped(step, started, ended, self.scheduler.pool.free_count, events, failure)
        finally:
            self.sink(events)
        if failure is None and result.pause is not None:
            self.clock.advance(result.pause)
        return True

    def leap(self, until: float = inf) -> bool:
        """Take one step, or as many that begin before `until` as are provably the same batch; False if there are none.

        Decisions, times and the journal's lines, once expanded, are those of single steps. Only where the executor can
        look ahead, time is virtual and nothing keeps recent steps, more than one is taken. The caller submits and
        cancels nothing before `until`. News of plain steps are told when the last of them has ended.
        """
        foresight, clock = self._foresight, self.clock
        if foresight is None or self.recent is not None or not isinstance(clock, VirtualClock):
            return self.step()
        formation = self.formation = self.formation or Formation.of(self.scheduler, foresight.token_of)
        if formation is None:
            return self.step()
        leap = Leap(self.scheduler, formation)
        due, pause = self._deadlines.next, 0.0
        if leap.mixed:
            if due < inf or not formation.fits():
                return self.step()
            pause = self._mix(leap, foresight, formation)
        horizon = min(until, due, self.scheduler.waiting.changes_at)
        moment, late = leap.run(foresight, clock.now(), pause, horizon, due)
        taken = len(leap) > 0
        if taken:
            leap.close()
            self._tell(leap)
        if leap.breaks or not formation.marchers:
            self.settle()
        clock.advance_to(moment)
        return self.step() if late or not taken else True

    def _mix(self, leap: Leap, foresight: Foresight, formation: Formation) -> float:
        """Take the first step of a leap, in which not everybody marches; returns the pause after it."""
        started = self._time.read()
        sequences, context = len(formation.marchers), formation.context()
        step = leap.choose(started)
        result = foresight.join(sequences, context, step)
        self.clock.advance(result.duration or 0.0)
        leap.take_first(step, result, started, self._time.read())
        return result.pause or 0.0

    def certain_steps(self) -> int:
        """Steps that take those in `formation` on before one of them ends or gives way, if nothing reaches the engine.

        At least so many; 0 where that is not known.
        """
        formation = self.formation
        if formation is None or formation.others or self.scheduler.waiting_count or self._deadlines.next < inf:
            return 0
        return formation.steps_left()

    def settle(self) -> None:
        """Bring up to date the counts of sequences, which leaps leave behind. Whoever else looks at them calls it."""
        if self.formation is not None:
            self.formation.halt()
            self.formation = None

    def _tell(self, leap: Leap) -> None:
        try:
            if self.journal is not None:
                self.journal.leapt(leap)
        finally:
            if self.leapt is not None:
                self.leapt(leap)
            else:
                for number in range(len(leap)):
                    self.sink(leap.events(number))

    def _end_due(self, now: float) -> list[Event]:
        if self._deadlines.next > now:  # nearly always
            return []
        due = self._deadlines.due(now)
        return [event for r in due for event in self.scheduler.cancel(r.id, None, FinishReason.DEADLINE)]

    def _expire(self, now: float) -> None:
        events = self._end_due(now)
        if events:
            if self.recent is not None:
                self.recent.ended(events, now)
            try:
                if self.journal is not None:
                    self.journal.expired(events, now)
            finally:
                self.sink(events)

    def run_until_idle(self) -> None:
        """Step until no request is alive."""
        while self.step():
            pass
