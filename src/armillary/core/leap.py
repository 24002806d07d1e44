"""Leaping: steps that are provably the same batch are taken in one.

Between two steps it is often certain what the next ones will be: each running sequence takes one token, nobody is
admitted, preempted, split or copied, and nobody ends before a step that is known. Then only the blocks that fill up or
are needed anew ask for work, in the order in which single steps would have asked, and the times. Everything else is
arithmetic on counts, done once. In the first step of a leap newcomers may be admitted, by the scheduler as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from armillary.core.request import FinishReason, Sequence
from armillary.core.scheduler import Scheduler
from armillary.core.step import Entry, Event, Step, StepResult


class Ahead(NamedTuple):
    """What an executor says beforehand of steps in which each of some sequences takes one token.

    Attributes:
        tokens: of each sequence, the one token that it gets in every one of these steps.
        times: of one step after the other, the seconds that it takes and the seconds of pause after it, as in
            `StepResult`.
    """

    tokens: list[int]
    times: Iterator[tuple[float, float]]


@runtime_checkable
class Foresight(Protocol):
    """What an executor that predicts has besides `run`, so that its engine may leap."""

    def look_ahead(self, sequences: list[Sequence], behind: int) -> Ahead:
        """Steps in which every one of the sequences computes one position and samples one token.

        The sequences' counts are `behind` so many steps that have been taken.
        """
        ...

    def join(self, sequences: list[Sequence], step: Step) -> StepResult:
        """A step in which these sequences take one token each and the step's entries are computed beside them.

        The result's tokens are the entries'; its duration and pause are those of all.
        """
        ...

    def put_back(self, times: tuple[float, float]) -> None:
        """Times that were asked for and not used: those of the next step that is run, which is of the same batch."""
        ...


class Leap:
    """Steps of the same batch, booked one after the other, and what there is to tell of them afterwards.

    Attributes:
        first: the number of its first step.
        sequences: who takes part, in the order of the entries.
        starts: of each, the position that it computes in the first step.
        tokens: of each, the token that it gets in every step.
        times: when each step began and ended.
        free: free blocks after each step.
        over: whether no further step can follow in this leap. Only in the last step can a sequence end.
        ended: places in `sequences` of those that ended with it, each by its limit.
        may_admit: whether somebody may be admitted in the first step, so that it begins with `admit`.
        step: where it did, the first step, with the newcomers as its only entries. They are among `sequences` if they
            take part in further steps; their position there is one before the one that they compute in the second.
        news: what became of the newcomers in that step.
    """

    __slots__ = (
        "_awaited", "_growing", "_left", "_others", "_phases", "_scheduler", "_size", "ended", "first", "free",
        "may_admit", "news", "over", "sequences", "starts", "step", "times", "tokens",
    )  # fmt: skip

    def __init__(self, scheduler: Scheduler, left: int, phases: list[list[int]]) -> None:
        """`left` steps until somebody ends; `phases` has the places of those who are so far into a block."""
        self._scheduler = scheduler
        self._size = len(phases)
        self._phases = phases
        self._left = left
        self._awaited = None if scheduler.blocked is None else scheduler.blocked[2]
        self.may_admit = _may_admit(scheduler)
        self.step: Step | None = None
        self.news: list[Event] = []
        self._growing: list[Sequence] = []
        self.first = scheduler.stats.steps
        self.sequences = scheduler.running.copy()
        self.starts = [sequence.computed for sequence in self.sequences]
        self.tokens: list[int] = []
        self.times: list[tuple[float, float]] = []
        self.free: list[int] = []
        self.over = False
        self.ended: list[int] = []
        self._others = len(self.sequences)
        """Sequences that are no newcomers."""

    @staticmethod
    def begin(scheduler: Scheduler) -> Leap | None:
        """The leap that can begin now; None where the next step may decide anything."""
        config = scheduler.config
        if not scheduler.running or config.preempt_every:
            return None
        left, size = config.max_context, config.block_size
        phases: list[list[int]] = [[] for _ in range(size)]
        for place, sequence in enumerate(scheduler.running):
            start, known = sequence.computed, len(sequence.tokens)
            if (  # not `_settled`, without the cost of a call for each of many
                start + 1 != known
                or known == sequence.prompt_length
                or sequence.shares_tail
                or sequence.request.stop_ids
            ):
                return None
            if sequence.limit - known < left:
                left = sequence.limit - known
            phases[start % size].append(place)
        return Leap(scheduler, left, phases)

    def __len__(self) -> int:
        """Steps taken."""
        return len(self.times)

    @property
    def fits(self) -> bool:
        """Whether there are free blocks for a further step. Asked before each."""
        size, taken = self._size, len(self.times)
        sequences = [self.sequences[place] for place in self._phases[-taken % size]]
        self._growing = [s for s in sequences if s.computed + taken >= len(s.blocks) * size]
        return len(self._growing) <= self._scheduler.pool.free_count

    def take(self, started: float, ended: float) -> None:
        """Book a further step, for which there are blocks. Nobody's time is over when it ends."""
        scheduler = self._scheduler
        pool = scheduler.pool
        for sequence in self._growing:
            sequence.blocks.append(pool.allocate())
        scheduler.pace.observe(ended - started, len(self.sequences))
        self.times.append((started, ended))
        filled = self._phases[-len(self.times) % self._size] if scheduler.config.prefix_cache else []
        if len(self.times) == self._left:
            self._take_last(filled)
        else:
            for place in filled:
                self._enter(place)
            self.over = bool(filled) and self._awaited is not None and self._awaited in scheduler.index
        self.free.append(pool.free_count)

    def admit(self, now: float) -> Step:
        """Choose the first step, in which somebody may be admitted. `fits` was true."""
        scheduler, others = self._scheduler, len(self.sequences)
        scheduler.waiting.refresh(now)
        step = self.step = Step(self.first, [])
        for sequence in self._growing:
            sequence.blocks.append(scheduler.pool.allocate())
        room = scheduler.config.max_step_tokens - others
        step.tokens = others + room - scheduler.admit(step, room, now)
        scheduler.stats.steps += 1
        scheduler.stats.max_running = max(scheduler.stats.max_running, len(scheduler.running))
        scheduler.stats.evictions = scheduler.index.evictions
        return step

    def take_first(self, step: Step, result: StepResult, started: float, ended: float) -> None:
        """Book the first step, which `admit` chose."""
        scheduler, others = self._scheduler, len(self.sequences)
        self.times.append((started, ended))
        filled = self._phases[-1 % self._size] if scheduler.config.prefix_cache else []
        if self._left == 1:
            self._take_last(filled)
        else:
            for place in filled:
                self._enter(place)
        scheduler.stats.generated_tokens += others
        self.news = scheduler.commit(step, result, ended, started)
        self.free.append(scheduler.pool.free_count)
        newcomers = scheduler.running[others:]  # if nobody has ended
        self.over = self.over or _may_admit(scheduler) or not all(map(_settled, newcomers))
        if not self.over:
            self._awaited = None if scheduler.blocked is None else scheduler.blocked[2]
            for sequence in newcomers:
                sequence.computed -= 1  # behind by the step taken, as the others are
                self._phases[sequence.computed % self._size].append(len(self.sequences))
                self.sequences.append(sequence)
                self.starts.append(sequence.computed)
                self._left = min(self._left, 1 + sequence.limit - len(sequence.tokens))

    def _take_last(self, filled: list[int]) -> None:
        """Somebody ends: in the order of the entries, since whether a block is indexed decides where it is put."""
        scheduler, steps = self._scheduler, len(self.times)
        for place, sequence in enumerate(self.sequences):
            if place in filled:
                self._enter(place)
            if self.starts[place] + 1 + steps == sequence.limit:
                self.ended.append(place)
                scheduler.stats.finished[FinishReason.LENGTH] += 1
                scheduler.retire(sequence, FinishReason.LENGTH)
        self.over = True

    def _enter(self, place: int) -> None:
        """Enter the block that a sequence has just filled into the prefix index."""
        sequence, computed = self.sequences[place], self.starts[place] + len(self.times)
        tokens = sequence.tokens
        if computed > len(tokens):
            tokens += [self.tokens[place]] * (computed - len(tokens))
        if computed >= (len(sequence.chain) + 1) * self._size:
            self._scheduler.index.extend_chain(
                sequence.chain, computed // self._size, sequence.blocks, sequence.tokens, sequence.digests,
                sequence.request.identity,
            )  # fmt: skip

    def close(self) -> None:
        """Bring the sequences up to date with the steps taken, of which there is at least one."""
        scheduler, steps = self._scheduler, len(self.times)
        for sequence, token in zip(self.sequences, self.tokens, strict=True):
            sequence.computed += steps
            tokens = sequence.tokens
            tokens += [token] * (sequence.computed + 1 - len(tokens))
        steps -= self.step is not None  # that one has been counted
        stats, count = scheduler.stats, steps * len(self.sequences)
        stats.steps += steps
        stats.computed_tokens += count
        stats.generated_tokens += count
        stats.max_running = max(stats.max_running, len(self.sequences))
        stats.evictions = scheduler.index.evictions
        scheduler.sweep()

    def events(self, number: int) -> list[Event]:
        """The news of one of its steps, counted from 0."""
        last = number == len(self.times) - 1
        places = range(self._others if number == 0 else len(self.sequences))
        events = [self._event(place, last and place in self.ended) for place in places]
        return events + self.news if number == 0 else events

    @property
    def first_step(self) -> Step:
        """The first step with everybody in it."""
        entries = [Entry(self.sequences[place], self.starts[place], 1, 1) for place in range(self._others)]
        if self.step is None:
            return Step(self.first, entries)
        return Step(self.first, entries + self.step.entries, admitted=self.step.admitted, imports=self.step.imports)

    @property
    def endings(self) -> list[Event]:
        """Of the news of its last step, those that end a sequence."""
        return [self._event(place, True) for place in self.ended]

    def _event(self, place: int, ends: bool) -> Event:
        sequence = self.sequences[place]
        return Event(sequence.request.id, sequence.index, self.tokens[place], FinishReason.LENGTH if ends else None)


def _settled(sequence: Sequence) -> bool:
    """Whether a running sequence takes one token in the next step and has nothing to do besides."""
    return (
        sequence.computed + 1 == len(sequence.tokens) > sequence.prompt_length
        and not sequence.shares_tail
        and not sequence.request.stop_ids
    )


def _may_admit(scheduler: Scheduler) -> bool:
    """Whether the next step may admit somebody, or must look whether it may.

    Within a leap there is less and less room, so that a head of the queue for which there was none stays where it is
    until the block that it waits for has been computed for somebody else.
    """
    head, config, running = scheduler.waiting.peek(), scheduler.config, len(scheduler.running)
    if head is None or running >= config.max_step_tokens or scheduler.slots + 1 + head.forks > config.max_running:
        return False
    blocked = scheduler.blocked
    return (
        blocked is None
        or blocked[0] != head.uid
        or scheduler.pool.free_count - running > blocked[1]
        or blocked[2] in scheduler.index
    )
