"""The KV cache: keys and values of all blocks, one pair of tensors per layer."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

from armillary.kernels import native
from armillary.models.spec import ModelSpec


class BlockStore:
    """Keys and values in blocks: per layer one tensor of keys and one of values, a block an entry of its first axis.

    How a block is laid out is the matter of whoever computes; copying, exporting and importing take blocks whole.
    Memory is reserved here and taken from the machine as blocks are first written.

    Attributes:
        zero_block: what tables are padded with; reading it gives finite numbers.
    """

    zero_block: int

    def __init__(self, num_blocks: int, block_size: int, keys: list[Tensor], values: list[Tensor]) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.keys = keys
        self.values = values

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copy whole blocks, (source, target) in the order given."""
        if not pairs:
            return
        sources, targets = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        chained = not set(sources).isdisjoint(targets)
        for batch in [[pair] for pair in pairs] if chained else [pairs]:
            source = torch.tensor([pair[0] for pair in batch])
            target = torch.tensor([pair[1] for pair in batch])
            for tensor in (*self.keys, *self.values):
                tensor.index_copy_(0, target, tensor.index_select(0, source))

    def clear(self, blocks: list[int], first: int, count: int) -> None:
        """Zero `count` positions of a sequence from position `first` on; `blocks` is its table."""
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Memory reserved."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))


class KVCache(BlockStore):
    """Blocks as torch computes with them, [num_blocks + 1, kv_heads, block_size, head_dim] per layer.

    Heads come before positions, so that gathering a sequence's blocks head by head already yields the
    layout that matrix products want. The block after the last, `zero_block`, is never written.
    """

    def __init__(self, spec: ModelSpec, num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
        shapes = [
            (num_blocks + 1, layer.attention.kv_heads, block_size, layer.attention.head_dim) for layer in spec.layers
        ]
        keys, values = ([_reserve(shape, dtype) for shape in shapes] for _ in range(2))
        super().__init__(num_blocks, block_size, keys, values)
        self.zero_block = num_blocks

    def clear(self, blocks: list[int], first: int, count: int) -> None:
        """See `BlockStore`."""
        positions = torch.arange(first, first + count)
        block = torch.tensor(blocks)[positions // self.block_size]
        offset = positions % self.block_size
        for tensor in (*self.keys, *self.values):
            tensor[block, :, offset] = 0


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
        self.store = extension.KvStore(path, num_blocks)
        keys, values = [], []
        for layer in spec.layers:
            shape = (element, layer.attention.kv_heads, layer.attention.head_dim, block_size)
            size = extension.KvStore.block_bytes(path, *shape)
            keys.append(_reserve((num_blocks, size), torch.uint8))
            values.append(_reserve((num_blocks, size), torch.uint8))
            self.store.add_layer(keys[-1], values[-1], *shape)
        super().__init__(num_blocks, block_size, keys, values)

    def clear(self, blocks: list[int], first: int, count: int) -> None:
        """See `BlockStore`."""
        self.store.clear(torch.tensor(blocks), first, count)


def _reserve(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that cost nothing until they are written: anonymous pages, where `torch.zeros` writes every byte."""
    return torch.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), dtype=dtype).view(shape)
