"""The engine: scheduler, executor and clock in the one loop."""

from __future__ import annotations

from collections.abc import Callable

from armillary.core.clock import Clock
from armillary.core.journal import Journal
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
    """

    def __init__(
        self, scheduler: Scheduler, executor: Executor, clock: Clock, sink: Sink, journal: Journal | None = None
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.clock = clock
        self.sink = sink
        self.journal = journal
        if journal is not None:
            journal.opened(scheduler.config)

    @property
    def idle(self) -> bool:
        """Whether no request is alive."""
        return self.scheduler.idle

    def submit(self, request: Request) -> None:
        """Accept a request, or raise `ArmillaryError` with the reason."""
        now = self.clock.now()
        self.scheduler.add(request, now)
        if self.journal is not None:
            try:
                self.journal.submitted(request, now)
            except BaseException:
                self.scheduler.cancel(request.id)  # who is told of an error must not be sent tokens
                raise

    def cancel(self, request_id: str, index: int | None = None, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """End a request, or one choice of it, whatever its state. Unknown or ended: nothing happens.

        `reason` STOP is how the text layer ends a choice in whose text it found a stop string.
        """
        events = self.scheduler.cancel(request_id, index, reason)
        if events:
            try:
                if self.journal is not None:
                    self.journal.cancelled(request_id, index, reason, self.clock.now())
            finally:
                self.sink(events)

    def step(self) -> bool:
        """Choose and run one step and deliver its events; False if there was nothing to do."""
        started = self.clock.now()
        step = self.scheduler.next_step(started)
        if step is None:
            return False
        failure = None
        try:
            result = self.executor.run(step)
            result.check(step)
            if result.duration is not None:
                self.clock.advance(result.duration)
        except Exception as error:  # a step that fails takes its own sequences with it, never the engine
            failure = f"{type(error).__name__}: {error}"
        ended = self.clock.now()
        if failure is None:
            events = self.scheduler.commit(step, result, ended, started)
        else:
            events = self.scheduler.fail(step, failure)
        try:
            if self.journal is not None:
                self.journal.stepped(step, started, ended, self.scheduler.pool.free_count, events, failure)
        finally:
            self.sink(events)
        return True

    def run_until_idle(self) -> None:
        """Step until no request is alive."""
        while self.step():
            pass
