"""The KV cache: keys and values of all blocks, one pair of tensors per layer."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

from armillary.models.spec import ModelSpec


class KVCache:
    """Keys and values in blocks, [num_blocks + 1, kv_heads, block_size, head_dim] per layer.

    Heads come before positions, so that gathering a sequence's blocks head by head already yields the
    layout that matrix products want. The block after the last, `zero_block`, is never written: tables are
    padded with it, and what it holds is finite.

    Memory is reserved here and taken from the machine as blocks are first written.
    """

    def __init__(self, spec: ModelSpec, num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        self.zero_block = num_blocks
        shapes = [
            (num_blocks + 1, layer.attention.kv_heads, block_size, layer.attention.head_dim) for layer in spec.layers
        ]
        self.keys: list[Tensor] = [_reserve(shape, dtype) for shape in shapes]
        self.values: list[Tensor] = [_reserve(shape, dtype) for shape in shapes]

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
        positions = torch.arange(first, first + count)
        block = torch.tensor(blocks)[positions // self.block_size]
        offset = positions % self.block_size
        for tensor in (*self.keys, *self.values):
            tensor[block, :, offset] = 0

    @property
    def bytes(self) -> int:
        """Memory reserved."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))


def _reserve(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that cost nothing until they are written: anonymous pages, where `torch.zeros` writes every byte."""
    return torch.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), dtype=dtype).view(shape)
