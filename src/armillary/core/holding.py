"""Blocks that outlive their sequence, for whoever fetches what they hold."""

from __future__ import annotations

from collections.abc import Iterator

from armillary.core.blocks import BlockPool
from armillary.core.prefix import PrefixIndex
from armillary.core.request import Sequence


class Holding:
    """Holds the blocks of ended requests until they are given back."""

    def __init__(self, pool: BlockPool, index: PrefixIndex) -> None:
        self._pool = pool
        self._index = index
        self._blocks: dict[str, list[int]] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def of(self, request_id: str) -> list[int]:
        """The blocks that an ended request holds, in the order of their positions."""
        return self._blocks[request_id]

    def keep(self, sequence: Sequence) -> None:
        """Hold the blocks of a sequence beside its own hold on them, which is about to end."""
        for block in sequence.blocks:
            self._pool.share(block)
        self._blocks[sequence.request.id] = sequence.blocks

    def release(self, request_id: str) -> bool:
        """Give back what an ended request holds; whether it held anything."""
        blocks = self._blocks.pop(request_id, None)
        if blocks is None:
            return False
        self._pool.release(reversed(blocks), self._index.indexed)
        return True
