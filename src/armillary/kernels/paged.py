"""Paged attention: keys and values in blocks, queries in tiles, scores in pieces of fixed width.

A step mixes sequences of all lengths. Their queries are cut into tiles (one token when decoding, up to
`TILE_ROWS` rows of a prompt chunk), and tiles of like shape are computed together as a `TileGroup`: gather
the blocks they can see, multiply, mask, and combine.

The result of a query does not depend on what is computed beside it, bit for bit, because every sum has a
fixed shape: keys are summed within pieces of `piece_width` positions that begin at multiples of that width,
partial results are added in the order of the pieces, and a piece that a query cannot see adds exact zeros.
Matrix products get at least `MIN_ROWS` rows, below which BLAS libraries switch to another order of addition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PIECE = 64
"""Key positions per piece, where the block size divides it."""
MIN_ROWS = 4
ROW_MULTIPLE = 8
MAX_VIEWS = 512


def piece_width(block_size: int) -> int:
    """Key positions per piece: whole blocks, as near to `PIECE` as whole blocks come, and at least one."""
    return block_size * max(1, PIECE // block_size)


def padded_rows(rows: int) -> int:
    """How many rows a matrix product is given so that each row's result is the same beside any others."""
    return MIN_ROWS if rows <= MIN_ROWS else -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE


@dataclass(frozen=True, slots=True, eq=False)
class TileGroup:
    """Tiles of like shape, computed together.

    Attributes:
        rows: int64 [tiles * tokens], the flat row of each query token. A tile with fewer tokens repeats one.
            None where the group is rows 0, 1, 2, … of the step.
        tables: int64 [pieces, tiles * kv_heads * blocks per piece], each the index `block * kv_heads + head`
            into a cache seen as [blocks * kv_heads, block_size * head_dim].
        hidden: bool [pieces, tiles, 1, tokens, 1, piece], True where a query must not see a key.
        tiles, tokens, pieces: the group's shape.
        slab: pieces whose keys or values are gathered at once.
    """

    rows: Tensor | None
    tables: Tensor
    hidden: Tensor
    tiles: int
    tokens: int
    pieces: int
    slab: int


class Workspace:
    """Buffers that one thread reuses from call to call; they grow and never shrink.

    Without them every large intermediate would be mapped, cleared page by page and unmapped each time, which
    costs several times the arithmetic.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._views: dict[tuple[str, tuple[int, ...], torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uninitialised memory of this shape; the next `take` of the same name overwrites it."""
        view = self._views.get((name, shape, dtype))
        if view is None:
            size = math.prod(shape)
            buffer = self._buffers.get((name, dtype))
            if buffer is None or buffer.numel() < size:
                buffer = self._buffers[name, dtype] = torch.empty(size, dtype=dtype)
                self._views.clear()  # the old buffer must not live on in its views
            elif len(self._views) >= MAX_VIEWS:
                self._views.clear()
            view = self._views[name, shape, dtype] = buffer[:size].view(shape)
        return view

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Store new keys and values.

    k, v [T, kv_heads, head_dim]; caches [blocks, kv_heads, block_size, head_dim]; slots int64
    [S * kv_heads], for the first S of the T tokens the row `(block * kv_heads + head) * block_size + offset`.
    Tokens after the first S are padding and are not stored.
    """
    width = k_cache.shape[-1]
    rows = slots.shape[0]
    for new, cache in ((k, k_cache), (v, v_cache)):
        cache.view(-1, width).index_copy_(0, slots, new.reshape(-1, width)[:rows].to(cache.dtype))


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    group: TileGroup,
    out: Tensor,
    scale: float,
    softcap: float | None,
    workspace: Workspace,
) -> None:
    """Attend for one group of tiles, in float32, writing rows of `out`.

    q, out [T, heads, head_dim]; caches [blocks, kv_heads, block_size, head_dim]. Values in every gathered
    block must be finite, visible or not.
    """
    kv_heads, width = k_cache.shape[1], k_cache.shape[3]
    tiles, tokens, pieces, slab = group.tiles, group.tokens, group.pieces, group.slab
    shared = q.shape[1] // kv_heads
    used = tokens * shared
    rows = padded_rows(used)
    batch = tiles * kv_heads
    piece = group.hidden.shape[-1]

    picked = q[: tiles * tokens] if group.rows is None else q.index_select(0, group.rows)
    picked = picked.view(tiles, tokens, kv_heads, shared, width).transpose(1, 2)
    # Every piece multiplies its own copy: equal shapes keep equal sums. Narrow queries are scaled in float32.
    # The rows after `used` stay uninitialised; whatever they come to is not looked at.
    queries = workspace.take("q", (slab, tiles, kv_heads, rows, width))
    target = queries[:, :, :, :used].view(slab, tiles, kv_heads, tokens, shared, width)
    torch.mul(picked.float(), scale, out=target[0])
    if slab > 1:
        target[1:] = target[0]
    queries = queries.view(slab * batch, rows, width)

    scores = workspace.take("s", (pieces, batch, rows, piece))
    for begin in range(0, pieces, slab):
        end = min(begin + slab, pieces)
        size = (end - begin) * batch
        keys = _gather(k_cache, group.tables[begin:end], workspace).view(size, piece, width)
        torch.bmm(queries[:size], keys.transpose(1, 2), out=scores[begin:end].view(size, rows, piece))
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    shaped = scores.view(pieces, tiles, kv_heads, rows, piece)[:, :, :, :used]
    shaped.view(pieces, tiles, kv_heads, tokens, shared, piece).masked_fill_(group.hidden, -torch.inf)
    # The maximum over all pieces, so that the pieces' sums can be added as they are. Exact, hence order-free.
    scores.sub_(scores.amax(dim=(0, 3), keepdim=True)).exp_()
    # A running sum adds in order, whatever the shape; a plain one may not.
    total = scores.sum(dim=3).cumsum(dim=0, dtype=torch.float64)[-1].to(torch.float32)
    result = workspace.take("r", (batch, rows, width))
    for begin in range(0, pieces, slab):
        end = min(begin + slab, pieces)
        size = (end - begin) * batch
        values = _gather(v_cache, group.tables[begin:end], workspace).view(size, piece, width)
        mixed = workspace.take("o", (size, rows, width))
        torch.bmm(scores[begin:end].view(size, rows, piece), values, out=mixed)
        for index, part in enumerate(mixed.view(end - begin, batch, rows, width), start=begin):
            result.add_(part) if index else result.copy_(part)
    result = (result / total[:, :, None]).view(tiles, kv_heads, rows, width)[:, :, :used]
    result = result.view(tiles, kv_heads, tokens, shared, width).transpose(1, 2)
    if group.rows is None:
        out[: tiles * tokens].view(result.shape).copy_(result)
    else:
        out.index_copy_(0, group.rows, result.reshape(tiles * tokens, -1, width).to(out.dtype))


def _gather(cache: Tensor, tables: Tensor, workspace: Workspace) -> Tensor:
    """The listed runs of a cache, one after another, as float32. The next call overwrites it."""
    blocks, kv_heads, block_size, width = cache.shape
    shape = (tables.numel(), block_size * width)
    found = workspace.take("kv", shape, cache.dtype)
    torch.index_select(cache.view(blocks * kv_heads, shape[1]), 0, tables.reshape(-1), out=found)
    if cache.dtype == torch.float32:
        return found
    # Without native half-width products this copy costs less than it saves.
    return workspace.take("wide", shape).copy_(found)
