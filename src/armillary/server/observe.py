"""Timing of steps and queues, around any executor and without its knowledge."""

from __future__ import annotations

from armillary.core.clock import Clock
from armillary.core.step import Executor, Step, StepResult
from armillary.server.metrics import ServerMetrics


class ObservedExecutor:
    """Runs steps as the executor inside does, and observes how long they and the waits before them took.

    Args:
        clock: the engine's, in whose seconds arrivals are.
    """

    def __init__(self, inside: Executor, clock: Clock, metrics: ServerMetrics) -> None:
        self.inside = inside
        self._clock = clock
        self._metrics = metrics
        self._admitted: set[int] = set()

    def run(self, step: Step) -> StepResult:
        started = self._clock.now()
        for sequence in step.admitted:
            if sequence.uid not in self._admitted:  # a preempted sequence is admitted again
                self._admitted.add(sequence.uid)
                self._metrics.queue_time.observe(started - sequence.arrival)
        self._admitted.difference_update(step.ended)
        try:
            return self.inside.run(step)
        finally:
            self._metrics.step_time.observe(self._clock.now() - started)
