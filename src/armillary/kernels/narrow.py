"""Matrix products with bfloat16 or float16 weights on a CPU that has no arithmetic for them.

There torch's own product runs at a tenth of the float32 one. Here the weight is widened a tile at a time
into a scratch buffer that stays in cache, and the float32 product runs on the tile: the weight crosses the
memory bus in its narrow form, once, and the arithmetic is that of float32. Products are exact to float32, which
is closer to the true value than a native bfloat16 product would be.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from armillary.kernels.rows import pad_rows

TILE_BYTES = 2 << 20
"""Scratch for one tile, in float32: large enough that a product fills it well, small enough for shared cache."""
_ROWS_MULTIPLE = 64


class _Scratch(threading.local):
    buffer: Tensor | None = None


_scratch = _Scratch()


def lacks_arithmetic(dtype: torch.dtype) -> bool:
    """Whether this CPU has no arithmetic of its own for `dtype`."""
    if dtype == torch.bfloat16:
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return not torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return False


def narrow_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias in float32. x float32 [T, in], weight narrow [out, in] -> float32 [T, out]."""
    rows = x.shape[0]
    x = pad_rows(x)
    out, width = weight.shape
    step = tile_rows(width)
    scratch = _buffer(step * width).view(step, width)
    result = torch.empty(x.shape[0], out, dtype=torch.float32)
    for start in range(0, out, step):
        tile = weight[start : start + step]
        wide = scratch[: tile.shape[0]]
        wide.copy_(tile)
        torch.mm(x, wide.t(), out=result[:, start : start + step])
    if bias is not None:
        result += bias
    return result[:rows]


def tile_rows(width: int) -> int:
    """Rows of a weight of that width that are widened at a time."""
    fitting = TILE_BYTES // (4 * width)
    return max(_ROWS_MULTIPLE, fitting // _ROWS_MULTIPLE * _ROWS_MULTIPLE)


def _buffer(size: int) -> Tensor:
    """A float32 buffer of this thread, reused from call to call."""
    buffer = _scratch.buffer
    if buffer is None or buffer.numel() < size:
        _scratch.buffer = buffer = torch.empty(size, dtype=torch.float32)
    return buffer[:size]
