"""The executor that predicts instead of computing."""

from __future__ import annotations

from dataclasses import dataclass

from armillary.core.request import Sequence
from armillary.core.step import Step, StepResult
from armillary.twin.cost import CostModel
from armillary.twin.work import work_of


@dataclass(slots=True)
class StepTotals:
    """What an executor has added up over its steps.

    Attributes:
        busy_s: seconds in steps.
        between_s: seconds that steps kept the next one waiting.
        outside: steps outside what the cost model was fitted on.
        rows: tokens sampled.
    """

    steps: int = 0
    busy_s: float = 0.0
    between_s: float = 0.0
    outside: int = 0
    rows: int = 0


def told_token(sequence: Sequence, row: int) -> int:
    """The token that the workload wants: the request's `sampling`, one further for each further choice."""
    token = sequence.request.sampling
    return token + sequence.index + row if isinstance(token, int) else 0


class VirtualExecutor:
    """Runs steps in no time at all and says how long they would have taken.

    What a sequence generates is not predicted: every one of its tokens is `told_token`, and it ends at its limit.
    """

    def __init__(self, cost: CostModel) -> None:
        self.cost = cost
        self.totals = StepTotals()

    def run(self, step: Step) -> StepResult:
        work = work_of(step)
        duration, pause = self.cost.step_s(work), self.cost.between_s(work)
        totals = self.totals
        totals.steps += 1
        totals.busy_s += duration
        totals.between_s += pause
        totals.rows += work.rows
        totals.outside += not self.cost.inside(work)
        tokens = [told_token(entry.sequence, row) for entry in step.entries for row in range(entry.rows)]
        return StepResult(tokens, duration=duration, pause=pause)
