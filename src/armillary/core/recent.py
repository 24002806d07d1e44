"""The latest steps of an engine, kept in memory: what the journal has of them, for whoever looks on.

Everything that is asked later (where a request's time went, what a step was made of) is worked out from these
records when it is asked. While nobody asks, a step costs one short record; steps that advance the same
sequences by one token each share the list of who took part.
"""

from __future__ import annotations

from array import array
from collections import deque
from copy import copy
from itertools import islice
from math import inf
from typing import NamedTuple

from armillary.core.request import FinishReason, Request, Sequence
from armillary.core.step import Event, Step

ENDED_KEPT = 1000
"""Requests that are remembered after their end."""


class StepRecord(NamedTuple):
    """One step.

    Attributes:
        number, started, ended: the journal's `step`, `at` and `until`.
        prefill: tokens of prompts that it computed; recomputation after a preemption is among them.
        decode: tokens past the prompts.
        sequences: how many took part.
        admitted, preempted: how many sequences.
        shares: uids of those who took part, then the first position of each, then the counts of each.
        ahead: to be added to the first positions.
    """

    number: int
    started: float
    ended: float
    prefill: int
    decode: int
    sequences: int
    admitted: int
    preempted: int
    shares: array[int]
    ahead: int

    def share_of(self, uid: int) -> tuple[int, int] | None:
        """First position and count of a sequence's share, if it took part."""
        shares, size = self.shares, self.sequences
        try:
            place = shares.index(uid, 0, size)
        except ValueError:
            return None
        return shares[size + place] + self.ahead, shares[2 * size + place]


class Mark(NamedTuple):
    """A sequence was admitted, or else preempted, at the start of a step."""

    step: int
    at: float
    uid: int
    admitted: bool


class Life:
    """What is remembered of one request from submission on."""

    __slots__ = ("arrival", "cached", "choices", "ended", "first_step", "marks", "request_id", "split", "uids")

    def __init__(self, request: Request, arrival: float, first_step: int) -> None:
        self.request_id = request.id
        self.arrival = arrival
        self.first_step = first_step
        """The first step that it could be part of."""
        self.choices = request.n
        self.uids: dict[int, int] = {}
        """Uid of a sequence -> the choice that it is."""
        self.split: int | None = None
        """The step that completed the prompt of several choices; choice 0 stood for all of them until then."""
        self.marks: list[Mark] = []
        self.ended: dict[int, tuple[float, FinishReason]] = {}
        """Choice -> when and how it ended."""
        self.cached = 0
        """Prompt tokens that came from the prefix index."""

    def copy(self) -> Life:
        """One that is no longer written to."""
        life = copy(self)
        life.uids, life.marks, life.ended = self.uids.copy(), self.marks.copy(), self.ended.copy()
        return life

    def see(self, step: Step, started: float) -> None:
        """Note what a step decides about the request, before it is kept."""
        for sequence in [entry.sequence for entry in step.entries]:
            if sequence.request.id == self.request_id:
                self.uids.setdefault(sequence.uid, sequence.index)
        for sequences, admitted in ((step.preempted, False), (step.admitted, True)):
            for sequence in sequences:
                if sequence.request.id == self.request_id:
                    self.cached = sequence.cached
                    self.marks.append(Mark(step.index, started, sequence.uid, admitted))


class Recent:
    """Takes what the journal takes, and keeps the latest of it. Written in the engine's thread only.

    Args:
        most_steps: steps that are remembered, at least 1. Each takes some 300 bytes, and 24 more for each
            sequence unless it is like the step before.
    """

    def __init__(self, most_steps: int) -> None:
        if most_steps < 1:
            raise ValueError(f"most_steps must be at least 1, given {most_steps}")
        self.steps: deque[StepRecord] = deque(maxlen=most_steps)
        self.lives: dict[str, Life] = {}
        self._ended: deque[Life] = deque()
        self._running: tuple[Step, float] | None = None
        """The step in progress, and when it started."""
        self._next_step = 0
        self._members: list[Sequence] = []
        self._shares: array[int] = array("q")
        self._prefill = 0
        self._ahead = 0
        self._alike = False
        """Whether the same members, one token each, would continue the step before."""
        self._forked = False
        """Whether the step before split choices off."""

    def recall(self, request_id: str) -> tuple[Life, list[StepRecord]] | None:
        """A copy of what is remembered of a request, and of the steps since; a step in progress has no end yet.

        From any thread: copies of containers are atomic, and what is written meanwhile is about the step in
        progress, which may be missing. None where nothing is remembered, or no more.
        """
        life = self.lives.get(request_id)
        if life is None:
            return None
        life = life.copy()
        latest = list(islice(reversed(self.steps), self._next_step - life.first_step))
        steps = [record for record in reversed(latest) if record.number >= life.first_step]
        running = self._running
        if running is not None and (not steps or steps[-1].number < running[0].index):
            step, started = running
            life.see(step, started)
            sizes = len(step.entries), len(step.admitted), len(step.preempted)
            steps.append(StepRecord(step.index, started, inf, 0, 0, *sizes, _shares(step), 0))
        return life, steps

    def admitted(self, request_id: str) -> bool:
        """Whether a request has ever been admitted, be it to the step in progress. From any thread."""
        life, running = self.lives.get(request_id), self._running
        if life is not None and life.marks:
            return True
        return running is not None and any(s.request.id == request_id for s in running[0].admitted)

    def submitted(self, request: Request, now: float) -> None:
        self.lives[request.id] = Life(request, now, self._next_step)

    def ended(self, events: list[Event], now: float) -> None:
        """Note the ends among some events."""
        for event in events:
            if event.finish is not None:
                life = self.lives.get(event.request_id)
                if life is None:
                    continue
                life.ended[event.index] = (now, event.finish)
                if len(life.ended) == life.choices:
                    self._ended.append(life)
                    if len(self._ended) > ENDED_KEPT:
                        self._forget(self._ended.popleft())

    def began(self, step: Step, started: float) -> None:
        """A step is about to run."""
        self._running = step, started

    def stepped(self, step: Step, started: float, ended: float, events: list[Event]) -> None:
        """Keep one step, run or failed."""
        self._running = None
        members = [entry.sequence for entry in step.entries]
        size = len(members)
        decided = step.admitted or step.preempted
        if self._alike and step.tokens == size and not decided and members == self._members:
            self._ahead += 1
        else:
            self._write(step, members, started)
        self._next_step = step.index + 1
        self.steps.append(
            StepRecord(
                step.index, started, ended, self._prefill, step.tokens - self._prefill, size,
                len(step.admitted), len(step.preempted), self._shares, self._ahead,
            )
        )  # fmt: skip
        self.ended(events, ended)

    def _write(self, step: Step, members: list[Sequence], started: float) -> None:
        """A step that is not like the one before: who took part, from where, how far."""
        entries = step.entries
        self._members = members
        self._shares = _shares(step)
        self._ahead = 0
        if self._forked:
            self._name(members)
        self._prefill, self._forked = 0, False
        for entry in entries:
            past = entry.sequence.prompt_length - entry.start
            if past > 0:
                self._prefill += min(entry.count, past)
                if entry.rows > 1:
                    self._forked = True
                    life = self.lives.get(entry.sequence.request.id)
                    if life is not None:
                        life.split = step.index
        self._alike = not self._prefill and step.tokens == len(entries)
        for sequences, admitted in ((step.preempted, False), (step.admitted, True)):
            if sequences:
                self._name(sequences)
                self._mark(sequences, step.index, started, admitted)

    def _name(self, sequences: list[Sequence]) -> None:
        """Note which choices of which requests these are."""
        for sequence in sequences:
            life = self.lives.get(sequence.request.id)
            if life is not None:
                life.uids[sequence.uid] = sequence.index

    def _mark(self, sequences: list[Sequence], step: int, at: float, admitted: bool) -> None:
        for sequence in sequences:
            life = self.lives.get(sequence.request.id)
            if life is not None:
                life.cached = sequence.cached
                life.marks.append(Mark(step, at, sequence.uid, admitted))

    def _forget(self, life: Life) -> None:
        if self.lives.get(life.request_id) is life:  # the id may have come again
            del self.lives[life.request_id]


def _shares(step: Step) -> array[int]:
    """Who takes part in a step, from where, how far, as `StepRecord.shares` has it."""
    entries = step.entries
    return array("q", [e.sequence.uid for e in entries] + [e.start for e in entries] + [e.count for e in entries])
