"""Floating-point numbers of checkpoints as arrays of numpy, which has no bfloat16: its bits are kept as uint16."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
"""float32, float16, or the bits of bfloat16 as uint16; and integers of other tools."""


def widened(values: Array) -> npt.NDArray[np.float32]:
    """The same numbers as float32."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32, copy=False)


def narrowed(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The nearest numbers of bfloat16, of two the even one. NaN stays NaN."""
    bits = values.view(np.uint32)
    found = ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    found[np.isnan(values)] = 0x7FC0
    return found


def converted(values: Array, dtype: str) -> Array:
    """Numbers in the format of that name: float32, bfloat16 or float16."""
    if dtype == "bfloat16":
        return values if values.dtype == np.uint16 else narrowed(widened(values))
    with np.errstate(over="ignore"):  # what float16 cannot hold is infinite, as torch has it
        return widened(values).astype(dtype, copy=False)
