"""The executor that predicts instead of computing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from armillary.core.request import Request, Sequence
from armillary.core.step import Step, StepResult
from armillary.twin.cost import CostModel
from armillary.twin.entering import Entering
from armillary.twin.gaps import Gaps
from armillary.twin.work import StepWork, work_of

MOST_AWAY = 256
"""Preempted sequences from which on it is looked whether they still exist."""


@dataclass(slots=True)
class StepTotals:
    """What an executor has added up over its steps.

    Attributes:
        busy_s: seconds in steps.
        between_s: seconds that steps kept the next one waiting.
        outside: steps outside what the cost model was fitted on.
        rows: tokens sampled.
        gaps: between the tokens of each sequence.
        blocks: KV blocks that were in use after each step, added up; kept by whoever has them.
        peak_blocks: the most of them.
    """

    steps: int = 0
    busy_s: float = 0.0
    between_s: float = 0.0
    outside: int = 0
    rows: int = 0
    gaps: Gaps = field(default_factory=Gaps)
    blocks: int = 0
    peak_blocks: int = 0


class VirtualExecutor:
    """Runs steps in no time at all and says how long they would have taken.

    What a sequence generates is not predicted. Every one of its tokens is the number that its request has for
    `sampling`, and one more for each further choice; it ends at its limit.

    Args:
        vary: says for each step, by its predicted seconds, how many times as long it and the pause after it take; asked
            once of each, in order. None: as long as predicted.
    """

    def __init__(self, cost: CostModel, vary: Callable[[float], float] | None = None) -> None:
        self.cost = cost
        self.vary = vary
        self.totals = StepTotals()
        self._known: tuple[float, float] | None = None
        """Times of the next step, asked for by a leap that ended before it."""
        self._told = self._pause = self._gap = 0.0
        """Seconds of all steps and pauses up to the end of the latest step, of the pause after it, and from the end of
        the step before it to its own."""
        self._away: dict[Sequence, float] = {}
        """Preempted sequences, and when each got its last token."""
        self._entering = Entering(cost.near_s)
        self._served = cost.near_s > 0
        self._read = self._read_tokens = self._ended = self._answered = 0
        """Since the latest step or with it, as of `StepWork`."""

    def read(self, prompt_tokens: int) -> None:
        """A server has read a request: the next step waited for that."""
        self._read += 1
        self._read_tokens += prompt_tokens

    def ended(self) -> None:
        """A request has ended."""
        self._ended = 1

    @property
    def steady(self) -> bool:
        """Whether the times of steps are as of `CostModel.steady`."""
        return self.cost.steady and self.vary is None

    def token_of(self, sequence: Sequence) -> int:
        """As of `armillary.core.leap.Foresight`."""
        return _own(sequence.request) + sequence.index

    def foresee(self, sequences: int, context: int) -> tuple[float, float]:
        """As of `armillary.core.leap.Foresight`."""
        times = self._ask(StepWork(sequences, sequences, sequences, context, context))
        self.totals.gaps.add(self._gap, sequences)  # who marches has had a token since it last came back
        return times

    def join(self, sequences: int, context: int, step: Step) -> StepResult:
        """As of `armillary.core.leap.Foresight`."""
        new = work_of(step)
        count = sequences + new.sequences
        duration, pause = self._ask(
            new._replace(
                sequences=count,
                rows=sequences + new.rows,
                context=context + new.context,
                pairs=context + new.pairs,
            )
        )
        self.totals.gaps.add(self._gap, sequences)
        return StepResult(self._tokens(step), duration=duration, pause=pause)

    def put_back(self, times: tuple[float, float]) -> None:
        """As of `armillary.core.leap.Foresight`."""
        self._known = times

    def run(self, step: Step) -> StepResult:
        self._note_away(step.preempted)
        if self._known is not None:
            (duration, pause), self._known = self._known, None
            return StepResult(self._tokens(step, noted=True), duration=duration, pause=pause)
        duration, pause = self._ask(work_of(step))
        return StepResult(self._tokens(step), duration=duration, pause=pause)

    def _note_away(self, preempted: list[Sequence]) -> None:
        for sequence in preempted:
            if sequence.generated:
                self._away.setdefault(sequence, self._told)
        if len(self._away) > MOST_AWAY:
            self._away = {sequence: told for sequence, told in self._away.items() if sequence.finish is None}

    def _note_gaps(self, sequences: list[Sequence]) -> None:
        """Note the gaps before the tokens that these sequences, which had some before, get of the latest step."""
        count, gaps = len(sequences), self.totals.gaps
        if self._away:
            for sequence in sequences:
                if sequence in self._away:
                    gaps.add(self._told - self._away.pop(sequence))
                    count -= 1
        gaps.add(self._gap, count)

    def _tokens(self, step: Step, noted: bool = False) -> list[int]:
        """The tokens of a step's entries, whose gaps may have been `noted` when its times were asked for."""
        tokens: list[int] = []
        going_on: list[Sequence] = []
        for entry in step.entries:
            sequence, rows = entry.sequence, entry.rows
            if rows:
                first = _own(sequence.request) + sequence.index
                tokens += (first,) if rows == 1 else range(first, first + rows)
                if sequence.generated:
                    going_on.append(sequence)
                else:
                    self._answered = 1
        if not noted:
            self._note_gaps(going_on)
        return tokens

    def _ask(self, work: StepWork) -> tuple[float, float]:
        """Seconds of the next step and of the pause after it; asked once of each."""
        if self._served:
            if self._read or self._ended or self._answered:
                work = work._replace(
                    read=self._read, read_tokens=self._read_tokens, ended=self._ended, answered=self._answered
                )
                self._read = self._read_tokens = self._ended = self._answered = 0
            if work.eventful or self._entering:
                work = self._entering.share(work, self.cost.alone_s(work))
        duration, pause = self.cost.step_s(work), self.cost.between_s(work)
        if self.vary is not None:
            factor = self.vary(duration)
            duration, pause = factor * duration, factor * pause
        self._gap = self._pause + duration
        self._told += self._gap
        self._pause = pause
        totals = self.totals
        totals.steps += 1
        totals.busy_s += duration
        totals.between_s += pause
        totals.rows += work.rows
        totals.outside += not self.cost.inside(work)
        return duration, pause


def _own(request: Request) -> int:
    own: int = request.sampling  # type: ignore[assignment]
    return own
