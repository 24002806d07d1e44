"""Whether a path of the native kernels computes right on the processor at hand."""

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
    (4, {"group": 32, "scales": 1}),
    (4, {"group": 32, "scales": 2}),
    (3, {"int8_activations": True}),
    (4, {"group": 32, "scales": 1, "int8_activations": True}),
)
"""Number formats of `src/native/kernels.h` with what else is told of a matrix."""
_ERROR = 0.03
"""Of a product, as a share of the sum of its terms' sizes: wrong layouts miss by far more, bfloat16 and 8-bit rows by
less."""


def agrees(extension: ModuleType, path: str) -> bool:
    """Multiply a small matrix of every format, attend to some tokens, compare with float64. Takes some milliseconds.

    Args:
        extension: `armillary.kernels._native`, which lists `path`.
    """
    return _multiplies(extension, path) and _attends(extension, path)


def _multiplies(extension: ModuleType, path: str) -> bool:
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


def _attends(extension: ModuleType, path: str) -> bool:
    """One head over keys and values of bfloat16, whose rows see whole pieces of 64 positions and parts of one."""
    tokens, dim, block = 80, 32, 16
    rows = np.random.default_rng(1).standard_normal((tokens, 3 * dim), dtype=np.float32)
    cache = extension.KvCache(path, tokens // block, 1, 1, dim, block)
    where = [np.array([number], dtype=np.int64) for number in (tokens, 0, 0)]
    table = np.arange(tokens // block, dtype=np.int64)[None]
    cache.store(rows, 1, *where, table)
    result = np.empty((tokens, dim), dtype=np.float32)
    cache.attend(rows, result, 1, *where, table, dim**-0.5)
    query, key, value = np.split(rows.astype(np.float64), 3, axis=1)
    scores = np.where(np.tri(tokens, dtype=bool), query @ key.T * dim**-0.5, -np.inf)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return bool((np.abs(result - weights @ value) <= _ERROR * (weights @ np.abs(value))).all())
