"""Sharing within a step: what one sequence computes in a step, others take in that very step.

Whoever runs a step stores the keys and values of all its entries before any of them attends, layer by layer (`Step`).
So blocks that a step fills can be found as soon as the step is chosen, and nobody waits for them or computes them a
second time: a newcomer begins after them, and a running sequence whose prompt is still being computed goes on after
what others have computed, or are about to. A step that does not come to pass takes what was announced for it back.
"""

from __future__ import annotations

from collections.abc import Collection

from armillary.core.blocks import BlockPool
from armillary.core.config import SchedulerConfig
from armillary.core.prefix import Link, PrefixIndex
from armillary.core.request import Sequence
from armillary.core.stats import SchedulerStats
from armillary.core.step import Entry, Step


class Sharing:
    """Announces the blocks that a step fills, and lets sequences whose prompts go on begin after those of others.

    Only parts of prompts are announced: who takes its next token fills at most one block, of which others rarely have
    a use, and which is indexed once it has been computed.
    """

    def __init__(self, config: SchedulerConfig, index: PrefixIndex, pool: BlockPool, stats: SchedulerStats) -> None:
        self._config = config
        self._index = index
        self._pool = pool
        self._stats = stats

    def index_filled(self, sequence: Sequence, count: int) -> None:
        """Let others find the leading blocks of a sequence, `count` of which are full."""
        self._index.extend_chain(
            sequence.chain, count, sequence.blocks, sequence.tokens, sequence.digests, sequence.request.identity
        )

    def announce(self, step: Step, entry: Entry) -> None:
        """Let others find the blocks that an entry fills, in a step in which nobody gives way any more.

        Not beyond one that is indexed already: that one may be given away before this one has been computed.
        """
        sequence, chain, digests, index = entry.sequence, entry.sequence.chain, entry.sequence.digests, self._index
        first, count = len(chain), (entry.start + entry.count) // self._config.block_size
        if count == first:
            return
        index.extend_digests(digests, sequence.tokens, sequence.request.identity, count)
        fresh = index.first_known(digests, first, count)
        if fresh > first:
            self.index_filled(sequence, fresh)
            step.announced.append((entry, chain[first:]))

    def advance(self, step: Step, tokens: int) -> int:
        """Let parts of prompts begin where the blocks of others end, and announce what they fill.

        Args:
            step: with the running sequences, of which none gives way any more, and nobody else.
            tokens: what its entries compute.

        Returns:
            What they compute now.
        """
        most, size = self._config.max_chunk_tokens or self._config.max_step_tokens, self._config.block_size
        spare = self._config.max_step_tokens - tokens
        for entry in step.entries:
            sequence = entry.sequence
            if len(sequence.tokens) - entry.start == 1:
                continue
            if sequence.request.reuse_prefix:
                self._take(sequence)
                entry.start = sequence.computed
            rest = len(sequence.tokens) - entry.start
            count = min(rest, most, entry.count + spare, len(sequence.blocks) * size - entry.start)
            spare += entry.count - count
            entry.count = count
            entry.rows = sequence.rows if count == rest else 0
            self.announce(step, entry)
        return self._config.max_step_tokens - spare

    def _take(self, sequence: Sequence) -> None:
        """Put the blocks of others that can be found in the place of a sequence's own next ones."""
        chain, digests, blocks = sequence.chain, sequence.digests, sequence.blocks
        size, first = self._config.block_size, len(chain)
        most = min((len(sequence.tokens) - 1) // size, len(digests))
        if first >= most or digests[first] not in self._index:
            return
        links = self._index.lookup(sequence.tokens, digests, sequence.request.identity, most, chain)
        for number, link in enumerate(links, first):
            self._pool.share(link.block)
            self._pool.release((blocks[number],), self._index.indexed)
            blocks[number] = link.block
        if links:
            chain += links
            self._stats.prefix_hit_tokens += len(chain) * size - sequence.computed
            sequence.computed = len(chain) * size

    def withdraw(self, step: Step, failed: Collection[Entry]) -> set[Link]:
        """Take back what these entries had announced, and what was computed from it; returns these links.

        Whoever has one of them in its chain has taken, or has computed from, what is not there.
        """
        lost: set[Link] = set()
        for entry, links in step.announced:
            for link in links:
                if entry in failed or link.parent in lost:
                    lost.add(link)
                    self._index.withdraw(link)
        return lost
