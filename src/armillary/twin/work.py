"""What a step asks of a machine, as numbers. There are no phases: a prompt and a next token differ in their counts."""

from __future__ import annotations

from typing import NamedTuple

from armillary.core.step import Step


class StepWork(NamedTuple):
    """The work of one step.

    Attributes:
        sequences: entries in the step.
        tokens: positions computed.
        rows: tokens sampled (rows of logits).
        context: sum over the entries of start + count: positions whose keys and values are read.
        pairs: sum over the entries of the (query, key) pairs that causal attention looks at:
            count * start + count * (count + 1) / 2.
        admitted: sequences that begin to run with this step; a server has more to do for them than to compute. Where
            that is known to take its time (`CostModel.near_s`), the step's share of those that begin to run about then.
        near: the step's share of one such time: however many begin at once, together they take one.
        copies: KV blocks that are copied first.
    """

    sequences: int
    tokens: int
    rows: int
    context: int
    pairs: int
    admitted: float = 0
    near: float = 0
    copies: int = 0


def work_of(step: Step) -> StepWork:
    """The work of a step that the scheduler has chosen."""
    rows = context = pairs = 0
    for entry in step.entries:
        start, count = entry.start, entry.count
        rows += entry.rows
        context += start + count
        pairs += start + 1 if count == 1 else count * start + count * (count + 1) // 2
    return StepWork(len(step.entries), step.tokens, rows, context, pairs, len(step.admitted), copies=len(step.copies))
