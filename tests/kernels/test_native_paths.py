"""What paths have in common: where they compute the same operations, the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from packed_matrices import BF16, F16, native, packed, same_bits

INTEGERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("i8", {}),
    ("i8", {"int8_activations": True}),
    ("i4", {"group": 32}),
    ("i4", {"group": 128, "zero_points": True}),
    ("i4", {"group": 32, "int8_activations": True}),
    ("i4", {"group": 32, "int8_activations": True, "scales": BF16}),
    ("i4", {"group": 64, "scales": F16}),
    ("i4", {"group": 64, "zero_points": True, "int8_activations": True}),
)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.skipif("avx512" not in native.paths(), reason="this processor has no AVX-512 with VNNI")
@pytest.mark.parametrize(("element", "options"), [("f32", {}), ("bf16", {}), ("f16", {}), *INTEGERS])
def test_without_vnni_the_same_bits(element: str, options: dict[str, Any]) -> None:
    """Sums of integers are exact, whatever instructions they are made of; the rest is the same."""
    x, rows = draw(23, 384), draw(150, 384, seed=1)
    with_vnni, without = (packed(path, rows, element, **options)(x) for path in ("avx512", "avx512_plain"))
    assert same_bits(with_vnni, without)


@pytest.mark.skipif("avx512_bf16" not in native.paths(), reason="this processor has no AVX512-BF16")
@pytest.mark.parametrize("scale", [1.0, 1e-19, 1e-38, 1e30])
def test_pairs_of_bfloat16_are_what_stands_in_for_them(scale: float) -> None:
    """Order, roundings, and what becomes of numbers and sums too small for a full mantissa."""
    x, rows = draw(9, 130), draw(70, 130, seed=1)
    x[3], x[4, ::2] = 0, 0
    x *= np.float32(scale)
    rows *= np.float32(min(1.0, scale * 1e3) if scale < 1 else 1e5)
    found, expected = (packed(path, rows, "bf16")(x) for path in ("avx512_bf16", "emulated_avx512_bf16"))
    assert same_bits(found, expected)
    if scale == 1:
        assert np.isfinite(found).all() and (found[3] == 0).all()
