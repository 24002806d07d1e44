"""Who takes part in a step, and what follows from that for as long as the same take part in the same way."""

from __future__ import annotations

from collections.abc import Sequence as ReadOnlyList
from itertools import accumulate

from armillary.core.request import Sequence
from armillary.runtime.pooling import PoolingParams
from armillary.runtime.sampling import SamplingParams
from armillary.runtime.wishes import Row


class Batch:
    """The members of a step, in the order of its entries. While everybody decodes it is the same in every step.

    Args:
        members: the sequences.
        counts: how many tokens each computes.
        wanted: how many tokens are then chosen for each (`Entry.rows`).

    Attributes:
        firsts: the first of each member's tokens among all tokens of the step.
        rows: for whom tokens are chosen.
        owners: the member that each of these rows belongs to.
        places: the token of the step after which each is chosen.
        constrained, probed, pooled: whether any member has a grammar, wants logprobs of its prompt, wants a vector.
    """

    __slots__ = (
        "constrained", "counts", "firsts", "members", "owners", "places", "pooled", "probed", "rows", "wanted",
    )  # fmt: skip

    def __init__(self, members: list[Sequence], counts: list[int], wanted: list[int]) -> None:
        self.members = members
        self.counts = counts
        self.wanted = wanted
        self.firsts: list[int] = list(accumulate(counts[:-1], initial=0))
        self.rows: ReadOnlyList[Row] = tuple(
            Row(member, member.index + choice)
            for member, many in zip(members, wanted, strict=True)
            for choice in range(many)
        )
        self.owners = [index for index, many in enumerate(wanted) for _ in range(many)]
        self.places = [self.firsts[index] + counts[index] - 1 for index in self.owners]
        asked = [member.request.sampling for member in members]
        params = [one for one in asked if isinstance(one, SamplingParams)]
        self.constrained = any(one.grammar is not None for one in params)
        self.probed = any(one.prompt_logprobs is not None for one in params)
        self.pooled = any(isinstance(one, PoolingParams) for one in asked)

    def continues(self, members: list[Sequence], counts: list[int], wanted: list[int]) -> bool:
        """Whether a step with these is like this one. They are the same objects, so this is quick."""
        return members == self.members and counts == self.counts and wanted == self.wanted
