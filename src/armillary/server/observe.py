"""Timing of steps and queues, around any executor and without its knowledge."""

from __future__ import annotations

from armillary.core.clock import Clock
from armillary.core.step import Executor, Step, StepResult
from armillary.server.metrics import GRAMMAR_PARTS, STEP_KINDS, ServerMetrics


class ObservedExecutor:
    """Runs steps as the executor inside does, and observes how long they and the waits before them took.

    Args:
        clock: the engine's, in whose seconds arrivals are.
    """

    def __init__(self, inside: Executor, clock: Clock, metrics: ServerMetrics, model: str) -> None:
        self.inside = inside
        self._clock = clock
        self._queue_time = metrics.queue_time.labels(model)
        self._kinds = {kind: (metrics.step_time.labels(model, kind), metrics.step_tokens.labels(model, kind))
                       for kind in STEP_KINDS}  # fmt: skip
        self._grammar = [(part, metrics.grammar_time.labels(model, part)) for part in GRAMMAR_PARTS]
        self._admitted: set[int] = set()

    def run(self, step: Step) -> StepResult:
        started = self._clock.now()
        for sequence in step.admitted:
            if sequence.uid not in self._admitted:  # a preempted sequence is admitted again
                self._admitted.add(sequence.uid)
                self._queue_time.observe(started - sequence.arrival)
        self._admitted.difference_update(step.ended)
        try:
            result = self.inside.run(step)
        finally:
            seconds, tokens = self._kinds[kind_of(step)]
            seconds.observe(self._clock.now() - started)
            tokens.observe(step.tokens)
        if result.costs is not None:
            for part, histogram in self._grammar:
                histogram.observe(result.costs.get(f"grammar_{part}", 0.0))
        return result


def kind_of(step: Step) -> str:
    """One of `STEP_KINDS`. What a preemption threw away counts as prompt, as far as the prompt goes."""
    prompts = sum(1 for entry in step.entries if entry.start < entry.sequence.prompt_length)
    if not prompts:
        return "decode"
    return "prefill" if prompts == len(step.entries) else "mixed"
