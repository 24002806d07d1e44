"""The pool of KV blocks: who holds which, and which one is given away next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice


class BlockPool:
    """Reference counts over a fixed number of blocks.

    A block is either held (count > 0) or free. A free block may still carry content that the prefix index
    can hand out again, so free blocks are kept in the order in which they should be given away: blocks
    with nothing worth keeping first, then least recently used. A held block is never given away.

    Args:
        num_blocks: blocks in the pool, at least 1. They are numbered from 0.
        forget: called with blocks whose content is lost, as they are given away: of those that were worth keeping.
    """

    def __init__(self, num_blocks: int, forget: Callable[[list[int]], None] | None = None) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, given {num_blocks}")
        self.num_blocks = num_blocks
        self._counts = [0] * num_blocks
        self._empty = list(range(num_blocks - 1, -1, -1))
        """Free blocks with nothing worth keeping, the next to be given away last."""
        self._kept: OrderedDict[int, None] = OrderedDict()
        """The other free ones, least recently used first."""
        self._forget = forget

    @property
    def free_count(self) -> int:
        """Blocks that nobody holds."""
        return len(self._empty) + len(self._kept)

    @property
    def used_count(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - self.free_count

    def free_order(self) -> list[int]:
        """Free blocks in the order in which they would be given away."""
        return [*reversed(self._empty), *self._kept]

    def holders(self, block: int) -> int:
        """How many sequences hold the block."""
        return self._counts[block]

    def holder_counts(self) -> list[int]:
        """A copy of `holders` of every block."""
        return self._counts.copy()

    def allocate(self) -> int:
        """Hand out the free block that is least worth keeping, with one holder.

        The caller has checked `free_count`; an empty pool raises `IndexError`.
        """
        return self.take(1)[0]

    def take(self, count: int) -> list[int]:
        """So many blocks, as if allocated one after the other."""
        empty, kept, counts = self._empty, self._kept, self._counts
        if count > len(empty) + len(kept):
            raise IndexError("every block is held; check free_count before allocating")
        blocks = empty[: -count - 1 : -1]
        del empty[len(empty) - len(blocks) :]
        if len(blocks) < count:
            old = list(islice(kept, count - len(blocks)))
            for block in old:
                del kept[block]
            if self._forget is not None:
                self._forget(old)
            blocks += old
        for block in blocks:
            counts[block] = 1
        return blocks

    def free_among(self, blocks: Iterable[int]) -> int:
        """How many of some blocks nobody holds."""
        counts = self._counts
        return [counts[block] for block in blocks].count(0)

    def share(self, block: int) -> None:
        """Add a holder. A free block is taken out of the free order with its content intact."""
        self.share_all((block,))

    def share_all(self, blocks: Iterable[int]) -> None:
        """Add a holder to each."""
        counts, kept = self._counts, self._kept
        for block in blocks:
            count = counts[block]
            if not count:
                if block in kept:
                    del kept[block]
                else:
                    self._empty.remove(block)
            counts[block] = count + 1

    def release(self, blocks: Iterable[int], worth_keeping: Callable[[int], bool]) -> None:
        """Drop one holder of each block.

        Args:
            blocks: in the order in which they should later be given away (so: last positions first).
            worth_keeping: whether the prefix index could still hand out the block's content.
        """
        counts, kept = self._counts, self._kept
        for block in blocks:
            count = counts[block]
            if count < 1:
                raise ValueError(f"block {block} was released more often than it was held")
            counts[block] = count - 1
            if count > 1:
                continue
            if worth_keeping(block):
                kept[block] = None
            else:
                self._empty.append(block)

    def check(self, held: Iterable[int]) -> None:
        """Verify the accounting against a list of every hold; raises `RuntimeError` on a difference.

        Args:
            held: the blocks of all sequences, repeated where several hold the same block.
        """
        expected = [0] * self.num_blocks
        for block in held:
            expected[block] += 1
        if expected != self._counts:
            wrong = [b for b in range(self.num_blocks) if expected[b] != self._counts[b]]
            raise RuntimeError(f"holders of blocks {wrong[:8]} differ from the sequences' block tables")
        if sorted(self.free_order()) != [block for block, count in enumerate(expected) if not count]:
            raise RuntimeError("the free order does not hold exactly the blocks that nobody holds")
