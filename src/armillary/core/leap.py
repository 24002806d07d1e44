"""Leaping: steps that are provably the same batch are taken in one.

Between two steps it is often certain what the next ones will be: each running sequence takes one token, nobody is
admitted, preempted, split or copied, and nobody ends before a step that is known. Then only the blocks that fill up or
are needed anew ask for work, in the order in which single steps would have asked, and the times. Everything else is
arithmetic on counts, done when somebody asks for them (`Formation`). In the first step of a leap newcomers may be
admitted and prompts computed further, by the scheduler as ever; in the last one sequences may end.
"""

from __future__ import annotations

from math import inf
from typing import Protocol, runtime_checkable

from armillary.core.formation import Formation, Marcher
from armillary.core.request import FinishReason, Sequence
from armillary.core.scheduler import Scheduler
from armillary.core.step import Entry, Event, Step, StepResult


@runtime_checkable
class Foresight(Protocol):
    """What an executor that predicts has besides `run`, so that its engine may leap."""

    def token_of(self, sequence: Sequence) -> int:
        """The token that a sequence gets in every step in which it computes one position and samples one token."""
        ...

    def foresee(self, sequences: int, context: int) -> tuple[float, float]:
        """Times of the next step, in which so many sequences compute one position and sample one token each.

        Args:
            context: positions whose keys and values are read, those computed included, over all sequences.

        Returns:
            The seconds that it takes and the seconds of pause after it, as in `StepResult`.
        """
        ...

    def join(self, sequences: int, context: int, step: Step) -> StepResult:
        """The next step, in which the step's entries are computed beside sequences as of `foresee`.

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
        marchers: who takes part, in the order of the entries.
        times: when each step began and ended.
        free: free blocks after each step.
        over: whether no further step can follow in this leap. Only in the last step can a sequence end.
        ended: those of the marchers that ended with it, each by its limit.
        mixed: whether in the first step somebody may be admitted or does not march, so that it begins with `choose`.
        step: where it did, the first step, with those who do not march as its only entries. They are among the marchers
            if they take part in further steps.
        news: what became of them in that step.
        breaks: whether the formation cannot go on.
    """

    __slots__ = (
        "_awaited", "_formation", "_from", "_old", "_scheduler", "breaks", "ended", "first", "free", "marchers",
        "mixed", "news", "over", "step", "times",
    )  # fmt: skip

    def __init__(self, scheduler: Scheduler, formation: Formation) -> None:
        self._scheduler = scheduler
        self._formation = formation
        self._from = formation.taken
        self._awaited = None if scheduler.blocked is None else scheduler.blocked[2]
        self.mixed = bool(formation.others) or _may_admit(scheduler)
        self.step: Step | None = None
        self.news: list[Event] = []
        self.first = scheduler.stats.steps
        self.marchers = list(formation.marchers.values())
        self.times: list[tuple[float, float]] = []
        self.free: list[int] = []
        self.over = self.breaks = False
        self.ended: list[Marcher] = []
        self._old = len(self.marchers)
        """Marchers that march from the first step on."""

    def __len__(self) -> int:
        """Steps taken."""
        return len(self.times)

    def run(self, foresight: Foresight, now: float, pause: float, horizon: float, due: float) -> tuple[float, bool]:
        """Take steps until something else may have to be decided.

        Args:
            now: when the last step ended; `pause` seconds later the next one may begin.
            horizon: no step begins at or after it.
            due: no step ends at or after it: somebody's time is over then.

        Returns:
            The time at which the next step may begin, and whether it is one that `due` forbids.
        """
        scheduler, formation, count = self._scheduler, self._formation, len(self.marchers)
        pool, observe, foresee = scheduler.pool, scheduler.pace.observe, foresight.foresee
        phases, size, end = formation.phases, formation.block_size, formation.next_end
        taken, context, free = formation.taken, formation.context(), pool.free_count
        while not self.over:
            growing = phases[-taken % size]
            if len(growing) > free:
                break
            now, pause = now + pause, 0.0
            if now >= horizon:
                break
            times = duration, pause = foresee(count, context)
            if not (0.0 <= duration < inf and 0.0 <= pause < inf):
                raise ValueError(f"a step and the pause after it must take 0 or more seconds, given {times}")
            ended = now + duration
            if ended >= due:
                foresight.put_back(times)
                return now, True
            observe(ended - now, count)
            self.times.append((now, ended))
            if growing:
                formation.grow()
                free = pool.free_count
            if taken == end or phases[-(taken + 1) % size]:
                filled, self.ended = formation.advance()
                if self.ended or (filled and self._awaited is not None and self._awaited in scheduler.index):
                    self.over, free = True, pool.free_count
            else:
                formation.taken += 1
            self.free.append(free)
            now, taken, context = ended, taken + 1, context + count
        return now + pause, False

    def choose(self, now: float) -> Step:
        """Choose the first step, in which not everybody marches. There are blocks for all that run."""
        scheduler = self._scheduler
        self._formation.grow()
        step = self.step = Step(self.first, [])
        scheduler.choose(step, self._formation.others, now)
        return step

    def take_first(self, step: Step, result: StepResult, started: float, ended: float) -> None:
        """Book the first step, which `choose` chose."""
        scheduler, formation = self._scheduler, self._formation
        self.times.append((started, ended))
        _, self.ended = formation.advance()
        scheduler.stats.generated_tokens += self._old
        self.news = scheduler.commit(step, result, ended, started)
        self.free.append(scheduler.pool.free_count)
        rest = scheduler.running[len(formation.marchers) :]
        self.breaks = any(sequence.shares_tail for sequence in rest)
        if self.breaks:
            self.over = True
            return
        joined = formation.join_all(rest)
        # Answers of one token have ended, too, and who waited for one may send something before the next step ends.
        told = any(event.finish is not None for event in self.news)
        self.over = bool(self.ended or formation.others) or told or _may_admit(scheduler)
        if not self.over:
            self._awaited = None if scheduler.blocked is None else scheduler.blocked[2]
            self.marchers += joined

    def close(self) -> None:
        """Count the steps taken, of which there is at least one."""
        scheduler = self._scheduler
        steps = len(self.times) - (self.step is not None)  # that one has been counted
        stats, count = scheduler.stats, steps * len(self.marchers)
        stats.steps += steps
        stats.computed_tokens += count
        stats.generated_tokens += count
        if steps:  # else those who have joined in the first step have not marched yet
            stats.reached(len(self.marchers), len(self.marchers))
        stats.evictions = scheduler.index.evictions
        if self.ended:
            scheduler.sweep()

    def starts(self) -> list[int]:
        """Of each marcher, the position that it computes in the first step; of newcomers, the one before their first
        as marchers."""
        return [marcher.origin + self._from for marcher in self.marchers]

    def events(self, number: int) -> list[Event]:
        """The news of one of its steps, counted from 0."""
        ended = self.ended if number == len(self.times) - 1 else ()
        marchers = self.marchers[: self._old] if number == 0 else self.marchers
        events = [_event(marcher, marcher in ended) for marcher in marchers]
        return events + self.news if number == 0 else events

    @property
    def first_step(self) -> Step:
        """The first step with everybody in it."""
        old = self.marchers[: self._old]
        entries = [Entry(marcher.sequence, marcher.origin + self._from, 1, 1) for marcher in old]
        if self.step is None:
            return Step(self.first, entries)
        return Step(self.first, entries + self.step.entries, admitted=self.step.admitted, imports=self.step.imports)

    @property
    def endings(self) -> list[Event]:
        """Of the news of its last step, those that end a sequence."""
        return [_event(marcher, True) for marcher in self.ended]


def _event(marcher: Marcher, ends: bool) -> Event:
    sequence = marcher.sequence
    return Event(sequence.request.id, sequence.index, marcher.token, FinishReason.LENGTH if ends else None)


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
