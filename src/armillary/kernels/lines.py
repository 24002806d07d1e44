"""Memory for the native kernels, aligned to cache lines."""

from __future__ import annotations

import torch
from torch import Tensor

ALIGNMENT = 64


def aligned(size: int) -> Tensor:
    """uint8 [size], uninitialised, beginning at a multiple of `ALIGNMENT`."""
    whole = torch.empty(size + ALIGNMENT, dtype=torch.uint8)
    skip = -whole.data_ptr() % ALIGNMENT
    return whole[skip : skip + size]
