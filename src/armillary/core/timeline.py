"""Where a request's time went: the steps of an engine, seen from one choice of one request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from armillary.core.recent import Life, Mark, StepRecord


class TimePhase(StrEnum):
    """What a request is doing, or waiting for; up to DECODE, later ones are further along."""

    RECEIVED = "received"
    """At the server, not yet with the engine."""
    QUEUED = "queued"
    """Waiting for its first admission."""
    PREFILL = "prefill"
    """In a step that computes its prompt."""
    WAITING = "waiting"
    """Admitted, while a step runs without it."""
    PREEMPTED = "preempted"
    """Waiting to be admitted again."""
    RECOMPUTE = "recompute"
    """In a step that computes what a preemption threw away."""
    DECODE = "decode"
    """In a step that computes its newest tokens."""
    BETWEEN = "between"
    """Between two steps."""
    DELIVERY = "delivery"
    """Over in the engine; the last text is made and sent."""
    UNRECORDED = "unrecorded"
    """Before the oldest step that is remembered."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time in one phase; in a step, its number and the tokens computed in it for this choice."""

    phase: TimePhase
    start: float
    end: float
    step: int | None = None
    tokens: int | None = None


def spans_of(life: Life, prompt_length: int, choice: int, steps: Sequence[StepRecord], until: float) -> list[Span]:
    """The spans of one choice, end to end from the request's submission to the choice's end, or to `until`.

    Every boundary is a time that the journal has too: of the submission, of a step's start or end, of a
    cancellation.

    Args:
        life: of the request.
        prompt_length: tokens of its prompt.
        steps: the steps that are remembered, oldest first.
        until: the end of a choice that is still alive.
    """
    end = life.ended[choice][0] if choice in life.ended else until
    return _Walk(life, prompt_length, choice, end).over(steps)


class _Walk:
    """One pass over the steps."""

    def __init__(self, life: Life, prompt_length: int, choice: int, end: float) -> None:
        self._life = life
        self._prompt_length = prompt_length
        self._end = max(end, life.arrival)
        self._cursor = life.arrival
        self._spans: list[Span] = []
        self._state = TimePhase.QUEUED
        """What it is while no step has it; BETWEEN stands for admitted."""
        self._marks = iter(life.marks)
        self._next_mark: Mark | None = next(self._marks, None)
        self._own = next((uid for uid, index in life.uids.items() if index == choice), None)
        self._first = next((uid for uid, index in life.uids.items() if index == 0), None)
        self._reached = 0
        """Positions computed so far; before that, a step computes anew."""

    def over(self, steps: Sequence[StepRecord]) -> list[Span]:
        if steps and steps[0].number > self._life.first_step:
            self._skip_to(steps[0])
        for record in steps:
            if record.ended <= self._life.arrival:
                continue
            if record.started >= self._end:
                break
            self._add(self._state, record.started)
            self._pass_marks(record.number)
            self._step(record)
        self._add(self._state, self._end)
        return self._spans

    def _skip_to(self, record: StepRecord) -> None:
        """Steps that it may have been part of are forgotten; only its first admission is still known."""
        for mark in self._life.marks:
            if mark.admitted and mark.step < record.number:
                self._add(TimePhase.QUEUED, mark.at)
                self._add(TimePhase.UNRECORDED, record.started)
                break
        self._pass_marks(record.number - 1)

    def _uid(self, step: int) -> int | None:
        """Who stands for the choice in a step."""
        split = self._life.split
        return self._own if split is not None and step > split else self._first

    def _pass_marks(self, step: int) -> None:
        """Be admitted or preempted as was decided up to the start of this step."""
        while self._next_mark is not None and self._next_mark.step <= step:
            mark = self._next_mark
            if mark.uid == self._uid(mark.step):
                self._state = TimePhase.BETWEEN if mark.admitted else TimePhase.PREEMPTED
            self._next_mark = next(self._marks, None)

    def _step(self, record: StepRecord) -> None:
        uid = self._uid(record.number)
        share = None if uid is None else record.share_of(uid)
        if share is None:
            admitted = self._state is TimePhase.BETWEEN
            phase = TimePhase.WAITING if admitted else self._state
            self._add(phase, record.ended, record.number if admitted else None)
            return
        start, count = share
        if start < self._reached:
            phase = TimePhase.RECOMPUTE
        else:
            phase = TimePhase.PREFILL if start < self._prompt_length else TimePhase.DECODE
        self._reached = max(self._reached, start + count)
        self._add(phase, record.ended, record.number, count)

    def _add(self, phase: TimePhase, until: float, step: int | None = None, tokens: int | None = None) -> None:
        """Extend to `until`; a wait in the queue is one span, however many steps pass meanwhile."""
        until = min(until, self._end)
        if until <= self._cursor:
            return
        last = self._spans[-1] if self._spans else None
        if last is not None and last.phase is phase and last.step is None and step is None:
            self._spans[-1] = Span(phase, last.start, until)
        else:
            self._spans.append(Span(phase, self._cursor, until, step, tokens))
        self._cursor = until
