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
        near: the step's share of the time in which a server and its clients are busy with requests that come or go
            (`CostModel.near_s`): however many do at once, together they take one such time.
        read: requests that a server has read since the step before. While it reads them a step under way must wait:
            for a processor, and for the interpreter.
        read_tokens: their prompt tokens.
        ended: 1 where a request ended since the step before: server and client close its stream meanwhile.
        answered: 1 where the step before brought the first token of a request.
        admitted: sequences that begin to run with this step.
        copies: KV blocks that are copied first.
    """

    sequences: int
    tokens: int
    rows: int
    context: int
    pairs: int
    near: float = 0
    read: float = 0
    read_tokens: float = 0
    ended: float = 0
    answered: int = 0
    admitted: int = 0
    copies: int = 0

    @property
    def eventful(self) -> bool:
        """Whether the time near requests begins anew: one comes, has got its first token, or has ended."""
        return bool(self.admitted or self.answered or self.ended)


COUNTED = 9
"""How many of a step's numbers, the first, a fit knows: all that take time but the copies."""


def work_of(step: Step) -> StepWork:
    """The work of a step that the scheduler has chosen."""
    rows = context = pairs = 0
    for entry in step.entries:
        start, count = entry.start, entry.count
        rows += entry.rows
        context += start + count
        pairs += start + 1 if count == 1 else count * start + count * (count + 1) // 2
    admitted, copies = len(step.admitted), len(step.copies)
    return StepWork(len(step.entries), step.tokens, rows, context, pairs, admitted=admitted, copies=copies)
