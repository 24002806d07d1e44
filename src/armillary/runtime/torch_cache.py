"""The KV cache as torch computes with it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from armillary.kernels import native
from armillary.models.checkpoint import DTYPES
from armillary.models.spec import ModelSpec
from armillary.runtime.cache import BlockStore

KV_DTYPES = {**DTYPES, "int8": torch.int8}
"""Number formats of keys and values by their names."""


class KVCache(BlockStore):
    """Blocks of [kv_heads, block_size, head_dim].

    Heads come before positions, so that gathering a sequence's blocks head by head already yields the
    layout that matrix products want. The block after the last, `zero_block`, is never written.

    Args:
        dtype: number format of keys and values, of `KV_DTYPES`.

    Attributes:
        layers: keys and values of each layer, [num_blocks + 1, kv_heads, block_size, head_dim].
    """

    def __init__(self, spec: ModelSpec, num_blocks: int, block_size: int, dtype: str) -> None:
        found = KV_DTYPES[dtype]
        shapes = [(layer.attention.kv_heads, block_size, layer.attention.head_dim) for layer in spec.layers]
        super().__init__(num_blocks, block_size, [found.itemsize * math.prod(shape) for shape in shapes], spare=1)
        self.zero_block = num_blocks
        self.layers = [
            (_tensor(keys, found, shape), _tensor(values, found, shape))
            for keys, values, shape in zip(self.keys, self.values, shapes, strict=True)
        ]

    def clear(self, blocks: list[int], first: int, count: int) -> None:
        """See `BlockStore`."""
        positions = torch.arange(first, first + count)
        block = torch.tensor(blocks)[positions // self.block_size]
        offset = positions % self.block_size
        for pair in self.layers:
            for tensor in pair:
                tensor[block, :, offset] = 0


def _tensor(memory: native.Bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The blocks in this memory, in place."""
    return torch.from_numpy(memory).view(dtype).view(-1, *shape)
