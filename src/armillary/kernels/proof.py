"""Whether a path of the native kernels multiplies right on the processor at hand."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

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
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, IN, generator=generator)
    weight = torch.randn(OUT, IN, generator=generator)
    for element, options in _FORMATS:
        size = extension.weight_bytes(path, OUT, IN, element, **options)
        packed = extension.Weight(path, aligned(size), OUT, IN, element, **options)
        packed.pack(weight)
        values, result = torch.empty(OUT, IN), torch.empty(ROWS, OUT)
        packed.rows(torch.arange(OUT), values)
        extension.linear(packed, x, result)
        wanted, terms = x.double() @ values.double().T, x.double().abs() @ values.double().abs().T
        if not bool(((result - wanted).abs() <= _ERROR * terms).all()):  # NaN is not at most anything
            return False
        if not bool(((values - weight).abs() <= 0.5 * weight.abs().max()).all()):
            return False
    return True
