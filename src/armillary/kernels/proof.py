"""Whether a path of the native kernels multiplies right on the processor at hand."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from armillary.kernels.lines import aligned

OUT, IN, ROWS = 80, 160, 17
_FORMATS: tuple[tuple[int, dict[str, Any]], ...] = (
    (0, {}),
    (1, {}),
    (2, {}),
    (3, {}),
    (4, {"group": 32}),
    (3, {"int8_activations": True}),
    (4, {"group": 32, "int8_activations": True}),
)
"""Number formats of `src/native/kernels.h` with what else is told of a matrix."""
_ERROR = 0.03
"""Of a product, as a share of the sum of its terms' sizes: wrong layouts miss by far more, bfloat16 and 8-bit rows by
less."""


def agrees(extension: ModuleType, path: str) -> bool:
    """Multiply a small matrix of every format and compare with float64. Takes some milliseconds.

    Args:
        extension: `armillary.kernels._native`, which lists `path`.
    """
    generator = np.random.default_rng(1)
    x = generator.standard_normal((ROWS, IN), dtype=np.float32)
    weight = generator.standard_normal((OUT, IN), dtype=np.float32)
    for element, options in _FORMATS:
        size = extension.weight_bytes(path, OUT, IN, element, **options)
        packed = extension.Weight(path, aligned(size), OUT, IN, element, **options)
        packed.pack(weight)
        values, result = np.empty((OUT, IN), dtype=np.float32), np.empty((ROWS, OUT), dtype=np.float32)
        packed.rows(np.arange(OUT), values)
        extension.linear(packed, x, result)
        left, right = x.astype(np.float64), values.astype(np.float64).T
        wanted, terms = left @ right, np.abs(left) @ np.abs(right)
        if not bool((np.abs(result - wanted) <= _ERROR * terms).all()):  # NaN is not at most anything
            return False
        if not bool((np.abs(values - weight) <= 0.5 * np.abs(weight).max()).all()):
            return False
    return True
