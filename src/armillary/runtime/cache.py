"""The KV cache: keys and values of all blocks, one pair of arrays per layer."""

from __future__ import annotations

import numpy as np

from armillary.kernels import native
from armillary.models.spec import ModelSpec


class BlockStore:
    """Keys and values in blocks: per layer one array of keys and one of values, uint8 [blocks, bytes of a block].

    What a block's bytes mean is the matter of whoever computes; copying, exporting and importing take blocks whole.
    Memory is reserved here and taken from the machine as blocks are first written.

    Args:
        sizes: bytes of a block, layer by layer.
        spare: blocks beside those of the pool.

    Attributes:
        zero_block: what tables are padded with; reading it gives finite numbers.
    """

    zero_block: int

    def __init__(self, num_blocks: int, block_size: int, sizes: list[int], spare: int = 0) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.keys, self.values = ([_reserve(num_blocks + spare, size) for size in sizes] for _ in range(2))

    @property
    def memory(self) -> list[native.Bytes]:
        """All of it."""
        return [*self.keys, *self.values]

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copy whole blocks, (source, target) in the order given."""
        if not pairs:
            return
        sources, targets = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        chained = not set(sources).isdisjoint(targets)
        for batch in [[pair] for pair in pairs] if chained else [pairs]:
            source, target = [pair[0] for pair in batch], [pair[1] for pair in batch]
            for array in self.memory:
                array[target] = array[source]

    def clear(self, blocks: list[int], first: int, count: int) -> None:
        """Zero `count` positions of a sequence from position `first` on; `blocks` is its table."""
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Memory reserved."""
        return sum(array.nbytes for array in self.memory)


class NativeKVCache(BlockStore):
    """Blocks as the native kernels lay them out: uint8 [num_blocks, bytes of a block] per layer.

    Args:
        element: number format of keys and values, of `armillary.kernels.native`.

    Attributes:
        store: what `armillary.kernels._native.Program` takes.
    """

    zero_block = 0  # the kernels read no block that holds nothing to see

    def __init__(self, spec: ModelSpec, num_blocks: int, block_size: int, element: int, path: str) -> None:
        extension = native.extension()
        shapes = [(element, layer.attention.kv_heads, layer.attention.head_dim, block_size) for layer in spec.layers]
        super().__init__(num_blocks, block_size, [extension.KvStore.block_bytes(path, *shape) for shape in shapes])
        self.store = extension.KvStore(path, num_blocks)
        for keys, values, shape in zip(self.keys, self.values, shapes, strict=True):
            self.store.add_layer(keys, values, *shape)

    def clear(self, blocks: list[int], first: int, count: int) -> None:
        """See `BlockStore`."""
        self.store.clear(np.array(blocks, dtype=np.int64), first, count)


def _reserve(count: int, size: int) -> native.Bytes:
    """Zeros [count, size] that cost nothing until they are written: anonymous pages."""
    return np.frombuffer(native.pages(count * size), dtype=np.uint8).reshape(count, size)
