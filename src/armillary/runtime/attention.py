"""From a step to tiles: which queries are computed together, and which blocks they gather."""

from __future__ import annotations

from collections.abc import Sequence as ReadOnlyList
from functools import cached_property
from itertools import accumulate, repeat

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from armillary.core.step import Entry
from armillary.kernels.paged import TileGroup, Workspace, paged_attention, piece_width, write_kv
from armillary.models.spec import AttentionSpec, ModelSpec
from armillary.runtime.memory_plan import GROUP_BYTES, SCORE_BYTES
from armillary.runtime.torch_cache import KVCache

Ints = npt.NDArray[np.int64]

TILE_ROWS = 128
"""Most rows (query tokens times heads that share a key) of a tile."""
LAUNCH_BYTES = 2**20
"""Bytes that could be processed in the time that one more group costs; groups are merged up to this much padding."""


class StepLayout:
    """Where the tokens of a step lie: in the flat token axis, in their sequences and in the cache.

    Tokens are flat, entries in order. Block tables are read from the sequences anew in every step, so that
    there is no copy of them to go stale.
    """

    def __init__(self, entries: ReadOnlyList[Entry], block_size: int, zero_block: int) -> None:
        self.block_size = block_size
        counts = [entry.count for entry in entries]
        *firsts, self.total = accumulate(counts, initial=0)
        pad = piece_width(block_size) // block_size
        width = max(len(entry.sequence.blocks) for entry in entries) + pad
        # Lists that become arrays in one go: in a step of a small model, each operation on an array of a few numbers is
        # seen.
        tables = [
            [*entry.sequence.blocks, *repeat(zero_block, width - len(entry.sequence.blocks))] for entry in entries
        ]
        self.starts: Ints = np.array([entry.start for entry in entries], dtype=np.int64)
        self.counts: Ints = np.array(counts, dtype=np.int64)
        self.firsts: list[int] = firsts
        """First flat row of each entry."""
        self.rows: Ints = np.array(firsts, dtype=np.int64)
        """The same."""
        self.tables: Ints = np.array(tables, dtype=np.int64)

    @cached_property
    def owners(self) -> Ints:
        """The entry of each token."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def positions(self) -> Ints:
        """Of each token, in its sequence."""
        return np.arange(self.total) - np.repeat(self.rows - self.starts, self.counts)

    def slots(self, kv_heads: int) -> Tensor:
        """Where `write_kv` stores each head of each token; int64 [total * kv_heads]."""
        block, offset = np.divmod(self.positions, self.block_size)
        heads = self.tables[self.owners, block][:, None] * kv_heads + np.arange(kv_heads)
        return torch.from_numpy((heads * self.block_size + offset[:, None]).reshape(-1))

    def groups(self, attention: AttentionSpec) -> list[TileGroup]:
        """All tiles of the step for a layer of this shape and window."""
        piece = piece_width(self.block_size)
        shared = attention.heads // attention.kv_heads
        row_bytes = (self.starts + self.counts + piece) * attention.kv_heads * 4
        limit = np.maximum(np.minimum(SCORE_BYTES // row_bytes, TILE_ROWS) // shared, 1)
        limit = 1 << np.floor(np.log2(limit)).astype(np.int64)
        splits = -(-self.counts // limit)
        entry = np.repeat(np.arange(len(self.counts)), splits)
        skipped = (np.arange(len(entry)) - np.repeat(np.cumsum(splits) - splits, splits)) * limit[entry]
        count = np.minimum(self.counts[entry] - skipped, limit[entry])
        first = self.starts[entry] + skipped
        stop = (first + count - 1) // piece + 1
        begin = np.zeros_like(stop)
        if attention.window is not None:
            begin = np.maximum(first - attention.window + 1, 0) // piece
        pieces = stop - begin
        # Powers of two, so that the tails of chunks fall into few shapes.
        tokens = 1 << np.ceil(np.log2(count)).astype(np.int64)
        groups = []
        blocks = piece // self.block_size
        for members, shape, length, slab in _partition(tokens, pieces, piece, attention):
            columns = (begin[members] * blocks)[:, None] + np.arange(length * blocks)
            columns = np.minimum(columns, self.tables.shape[1] - 1)
            found = self.tables[entry[members][:, None], columns].reshape(len(members), length, 1, blocks)
            runs = found * attention.kv_heads + np.arange(attention.kv_heads)[:, None]
            within = np.minimum(np.arange(shape), count[members][:, None] - 1)
            queries = (first[members][:, None] + within)[:, :, None]
            steps = np.arange(length * piece).reshape(length, 1, 1, piece)
            keys = (begin[members] * piece)[:, None, None] + steps
            hidden = keys > queries
            if attention.window is not None:
                hidden |= keys <= queries - attention.window
            rows = ((self.rows[entry] + skipped)[members][:, None] + within).reshape(-1)
            in_order = len(rows) == self.total and bool((rows == np.arange(self.total)).all())
            groups.append(
                TileGroup(
                    rows=None if in_order else torch.from_numpy(rows),
                    tables=torch.from_numpy(np.ascontiguousarray(runs.swapaxes(0, 1)).reshape(length, -1)),
                    hidden=torch.from_numpy(hidden)[:, :, None, :, None, :],
                    tiles=len(members),
                    tokens=shape,
                    pieces=length,
                    slab=slab,
                )
            )
        return groups


def _partition(tokens: Ints, pieces: Ints, piece: int, attention: AttentionSpec) -> list[tuple[Ints, int, int, int]]:
    """Split tiles into groups of one shape: (tile numbers, tokens, pieces, pieces per slab) each.

    A tile may be padded to more pieces where the padding costs less than another group would, and a group
    is cut where it would outgrow the processor's cache.
    """
    order = np.lexsort((-pieces, tokens))
    shapes, lengths = tokens[order].tolist(), pieces[order].tolist()
    piece_bytes = attention.kv_heads * piece * attention.head_dim * 4
    result: list[tuple[Ints, int, int, int]] = []
    begin, padding = 0, 0
    for index in range(1, len(order) + 1):
        size, length = index - begin, lengths[begin]
        if index < len(order) and shapes[index] == shapes[begin]:
            padding += 2 * (length - lengths[index]) * piece_bytes
            score_bytes = length * attention.heads * piece * 4 * shapes[begin]
            if (
                padding <= LAUNCH_BYTES
                and (size + 1) * length * piece_bytes <= GROUP_BYTES
                and (size + 1) * score_bytes <= SCORE_BYTES
            ):
                continue
        slab = max(1, min(length, GROUP_BYTES // (size * piece_bytes)))
        result.append((np.sort(order[begin:index]), shapes[begin], length, slab))
        begin, padding = index, 0
    return result


class PagedAttend:
    """Attention of one step over the cache: an `Attend` for the decoder.

    Tokens after the layout's total are padding: they are not stored, and their output is zero.
    """

    def __init__(self, spec: ModelSpec, cache: KVCache, layout: StepLayout, workspace: Workspace) -> None:
        self._spec = spec
        self._cache = cache
        self._layout = layout
        self._workspace = workspace
        self._groups: dict[tuple[int, int, int, int | None], list[TileGroup]] = {}
        self._slots: dict[int, Tensor] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v, then attend; q [T, heads, head_dim] -> the same shape and element type."""
        attention = self._spec.layers[layer].attention
        keys, values = self._cache.layers[layer]
        slots = self._slots.get(attention.kv_heads)
        if slots is None:
            slots = self._slots[attention.kv_heads] = self._layout.slots(attention.kv_heads)
        write_kv(k, v, keys, values, slots)
        shape = (attention.heads, attention.kv_heads, attention.head_dim, attention.window)
        groups = self._groups.get(shape)
        if groups is None:
            groups = self._groups[shape] = self._layout.groups(attention)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        if self._layout.total < len(out):
            out[self._layout.total :] = 0
        for group in groups:
            paged_attention(q, keys, values, group, out, attention.scale, attention.softcap, self._workspace)
        return out
