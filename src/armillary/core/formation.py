"""Sequences that march: each takes one token in every step, and their counts are known without a look at them.

Whoever joins is entered once: under the step in which it will end, and under the steps in which it fills a block. A
step then costs what ends and what is filled in it, however many march. Until they `halt`, `Sequence.computed` and
`Sequence.tokens` stay behind; blocks, prefix index and pool are up to date after each step.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from armillary.core.request import FinishReason, Sequence
from armillary.core.scheduler import Scheduler


class Marcher:
    """A sequence in a formation.

    Attributes:
        origin: the position that it computes in the formation's step 0, were it in it; negative for a later one. It
            computes `origin + t` in step t.
        end: the step in which it gets its last token.
        number: its place in the order of entries.
        token: what it gets in every step.
        block: the tokens of a block of nothing else.
    """

    __slots__ = ("block", "end", "number", "origin", "sequence", "token")

    def __init__(self, sequence: Sequence, taken: int, number: int, token: int, block_size: int) -> None:
        self.sequence = sequence
        self.origin = sequence.computed - taken
        self.end = sequence.limit - self.origin - 2  # the last token is never computed
        self.number = number
        self.token = token
        self.block = (token,) * block_size

    def catch_up(self, taken: int) -> None:
        """Bring the sequence's counts up to date."""
        sequence, tokens = self.sequence, self.sequence.tokens
        sequence.computed = computed = self.origin + taken
        tokens += [self.token] * (computed + 1 - len(tokens))


class Formation:
    """The sequences that run, in the order of entries, while nothing else happens to them.

    Those that still compute their prompts do not march yet, nor does whoever runs after one of them, so that the order
    stays what it is: the scheduler looks at them in every step.

    Args:
        token_of: the token that a sequence gets in every step.

    Attributes:
        taken: steps taken since it was formed.
        marchers: by number.
        others: that run after the marchers.
        phases: at `-t % block_size`, those who need a block for step t, having filled one in the step before.
    """

    __slots__ = (
        "_ends", "_number", "_origins", "_scheduler", "_token_of", "block_size", "marchers", "others", "phases",
        "taken",
    )  # fmt: skip

    def __init__(self, scheduler: Scheduler, token_of: Callable[[Sequence], int]) -> None:
        self._scheduler = scheduler
        self._token_of = token_of
        self.block_size = scheduler.config.block_size
        self.phases: list[list[Marcher]] = [[] for _ in range(self.block_size)]
        self._ends: list[tuple[int, int, Marcher]] = []
        self._origins = 0
        self._number = 0
        self.marchers: dict[int, Marcher] = {}
        self.taken = 0
        self.others: list[Sequence] = []
        self.join_all(scheduler.running)

    @staticmethod
    def of(scheduler: Scheduler, token_of: Callable[[Sequence], int]) -> Formation | None:
        """The formation of all that run; None where nobody marches, or somebody shares a block that it writes to."""
        running = scheduler.running
        if not running or scheduler.config.preempt_every or not settled(running[0], scheduler.config.block_size):
            return None
        if any(sequence.shares_tail for sequence in running):
            return None
        return Formation(scheduler, token_of)

    def join_all(self, sequences: list[Sequence]) -> list[Marcher]:
        """Take in all that run after the marchers; returns those that march from now on."""
        joined: list[Marcher] = []
        for place, sequence in enumerate(sequences):
            if not settled(sequence, self.block_size):
                self.others = sequences[place:]
                return joined
            joined.append(self._join(sequence))
        self.others = []
        return joined

    def _join(self, sequence: Sequence) -> Marcher:
        """Take in a settled sequence, which runs after all marchers."""
        self._number += 1
        marcher = Marcher(sequence, self.taken, self._number, self._token_of(sequence), self.block_size)
        self.marchers[marcher.number] = marcher
        self.phases[marcher.origin % self.block_size].append(marcher)
        self._origins += marcher.origin
        heappush(self._ends, (marcher.end, marcher.number, marcher))
        return marcher

    @property
    def next_end(self) -> int:
        """The step in which the first of them ends; -1 where there is nobody."""
        return self._ends[0][0] if self._ends else -1

    def context(self) -> int:
        """Positions whose keys and values are read in the next step, those that it computes included."""
        return self._origins + len(self.marchers) * (self.taken + 1)

    def steps_left(self) -> int:
        """Steps before the one in which the first of them ends, as far as there are free blocks for certain."""
        rounds = self._scheduler.pool.free_count // len(self.marchers)  # each takes one block in as many steps
        return min(self.next_end - self.taken, rounds * self.block_size)

    def fits(self) -> bool:
        """Whether there are free blocks for a further step of all that run. Asked before each."""
        needed, size = len(self.phases[-self.taken % self.block_size]), self.block_size
        for sequence in self.others:  # each has the blocks of its prompt, and needs at most one more
            needed += len(sequence.tokens) > len(sequence.blocks) * size
        return needed <= self._scheduler.pool.free_count

    def grow(self) -> None:
        """Give those blocks that need them for the next step; there are enough."""
        growing = self.phases[-self.taken % self.block_size]
        for marcher, block in zip(growing, self._scheduler.pool.take(len(growing)), strict=True):
            marcher.sequence.blocks.append(block)

    def advance(self) -> tuple[bool, list[Marcher]]:
        """A step has been taken: whether a block was filled, and who ended with it."""
        self.taken = taken = self.taken + 1
        filled = self.phases[-taken % self.block_size] if self._scheduler.config.prefix_cache else ()
        if self._ends and self._ends[0][0] < taken:
            return bool(filled), self._end([*filled])
        for marcher in filled:
            self._enter(marcher)
        return bool(filled), []

    def _end(self, filled: list[Marcher]) -> list[Marcher]:
        """Somebody ends: in the order of the entries, since whether a block is indexed decides where it is put."""
        scheduler, taken, ends = self._scheduler, self.taken, self._ends
        ended = []
        while ends and ends[0][0] < taken:
            ended.append(heappop(ends)[2])
        for marcher in sorted({*filled, *ended}, key=lambda m: m.number):
            if marcher in filled:
                self._enter(marcher)
            if marcher.end < taken:
                marcher.catch_up(taken)
                del self.marchers[marcher.number]
                self.phases[marcher.origin % self.block_size].remove(marcher)
                self._origins -= marcher.origin
                scheduler.stats.finished[FinishReason.LENGTH] += 1
                scheduler.retire(marcher.sequence, FinishReason.LENGTH)
        return ended

    def _enter(self, marcher: Marcher) -> None:
        """Enter the block that a sequence has just filled into the prefix index."""
        sequence, size = marcher.sequence, self.block_size
        first, filled = marcher.origin + self.taken - size, marcher.block
        if first < len(sequence.tokens):  # it has marched for less than a block
            known = sequence.tokens[first : first + size]
            filled = (*known, *filled[len(known) :])
        self._scheduler.index.add_link(
            sequence.chain, sequence.blocks[first // size], filled, sequence.digests, sequence.request.identity
        )

    def halt(self) -> None:
        """Bring the marchers' counts up to date. The formation is not used after it."""
        for marcher in self.marchers.values():
            marcher.catch_up(self.taken)


def settled(sequence: Sequence, block_size: int) -> bool:
    """Whether a running sequence takes one token in the next step and at most begins a block with it."""
    return (
        sequence.computed + 1 == len(sequence.tokens) > sequence.admitted_length
        and not sequence.shares_tail
        and not sequence.request.stop_ids
        and 0 <= len(sequence.blocks) * block_size - sequence.computed < block_size
    )
