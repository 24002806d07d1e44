"""Native linear layers of 8 and 4 bits: exact on the integers that they keep, and as good as their formats allow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from packed_matrices import BF16, PATHS, Packed, native, packed, rows_do_not_depend_on_neighbours, same_bits

GROUPS = ((32, False), (64, True), (128, False))


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def relative_error(y: np.ndarray, x: np.ndarray, values: np.ndarray) -> float:
    return float((np.abs(y - x @ values.T) / (np.abs(x) @ np.abs(values).T + 1e-30)).max())


def integers_of_4_bits(path: str, out: int, width: int, group: int, zero_points: bool, **options: bool) -> Packed:
    """A matrix of integers, scales and zero points as another tool would have made them."""
    random = np.random.default_rng(5)
    rows = random.integers(0 if zero_points else -8, 16 if zero_points else 8, (out, width)).astype(np.int8)
    scales = random.uniform(1e-3, 2e-3, (out, width // group)).astype(np.float16).astype(np.float32)
    zeros = random.integers(0, 17, (out, width // group)).astype(np.float32) if zero_points else None
    matrix = Packed(path, out, width, "i4", group=group, zero_points=zero_points, **options)
    matrix.weight.pack(rows, 0, scales, zeros)
    spread = np.repeat(zeros, group, 1) if zeros is not None else 0.0
    expected = (rows - spread) * np.repeat(scales.astype(np.float64), group, 1)
    np.testing.assert_allclose(matrix.values, expected, rtol=1e-6)
    return matrix


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("group", "zero_points"), GROUPS)
def test_4_bit_integers_of_other_tools_are_kept(path: str, group: int, zero_points: bool) -> None:
    matrix = integers_of_4_bits(path, 70, 256, group, zero_points)
    x = draw(20, 256)
    for rows in (1, 2, 7, 20):
        assert relative_error(matrix(x[:rows]), matrix.inputs(x[:rows]), matrix.values) < 1e-6
    assert rows_do_not_depend_on_neighbours(matrix, x)


@pytest.mark.parametrize("path", PATHS)
def test_8_bit_integers_of_other_tools_are_kept(path: str) -> None:
    random = np.random.default_rng(5)
    rows = random.integers(-128, 128, (70, 133)).astype(np.int8)
    scales = random.uniform(1e-3, 2e-3, 70).astype(np.float32)
    matrix = Packed(path, 70, 133, "i8")
    matrix.weight.pack(rows, 0, scales)
    np.testing.assert_allclose(matrix.values, rows * scales[:, None].astype(np.float64), rtol=1e-6)
    x = draw(20, 133)
    assert relative_error(matrix(x), matrix.inputs(x), matrix.values) < 1e-6


@pytest.mark.parametrize("path", PATHS)
def test_rows_are_rounded_to_the_nearest(path: str) -> None:
    rows = draw(66, 256, seed=1)
    rows[3] = 0
    eighth = packed(path, rows, "i8").values
    assert (np.abs(eighth - rows) <= np.abs(rows).max(1, keepdims=True) / 127 * 0.501).all()
    for group, zero_points, most in ((32, False, 0.096), (128, False, 0.12), (32, True, 0.09)):
        fourth = packed(path, rows, "i4", group=group, zero_points=zero_points).values
        assert np.sqrt(((fourth - rows) ** 2).mean()) < most
        # Not worse than plain rounding at the scale at which the largest value just fits.
        grouped = rows.reshape(66, -1, group)
        plain = np.abs(grouped).max(2, keepdims=True) / 7
        plain[plain == 0] = 1
        naive = (np.clip(np.rint(grouped / plain), -8, 7) * plain).reshape(rows.shape)
        assert ((fourth - rows) ** 2).sum() < ((naive - rows) ** 2).sum()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_rows_are_rounded_where_their_squares_are_no_numbers(path: str, size: float) -> None:
    rows = draw(66, 256, seed=1) * np.float32(size)
    for options in ({"group": 32}, {"group": 32, "zero_points": True}, {"group": 32, "scales": BF16}):
        found = packed(path, rows, "i4", **options).values
        got, wanted = found.reshape(66, -1, 32), rows.reshape(66, -1, 32)
        assert (np.abs(got - wanted) <= np.abs(wanted).max(2, keepdims=True) / 6).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("out", "width"), [(1, 1), (70, 33), (130, 258), (64, 515), (17, 64)])
def test_8_bit_products_of_8_bit_activations_are_exact(path: str, out: int, width: int) -> None:
    matrix = packed(path, draw(out, width, seed=1), "i8", int8_activations=True)
    x = draw(40, width)
    x[2] = 0
    x[3] *= 1e-30
    x[4] *= 1e30
    kept = matrix.inputs(x)
    expected, size = kept @ matrix.values.T, np.abs(kept) @ np.abs(matrix.values).T
    whole = matrix(x)
    assert (np.abs(whole - expected) <= 3e-7 * size + 1e-37).all()
    assert rows_do_not_depend_on_neighbours(matrix, x)
    assert same_bits(matrix(x, threads=3), whole)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("group", "zero_points"), GROUPS)
def test_4_bit_products_of_8_bit_activations_are_exact_in_groups(path: str, group: int, zero_points: bool) -> None:
    for out, width in ((70, 384), (3, 128)):
        matrix = integers_of_4_bits(path, out, width, group, zero_points, int8_activations=True)
        x = draw(40, width)
        x[1, :group] *= 1000  # an outlier costs its own group, no other
        whole = matrix(x)
        assert relative_error(whole, matrix.inputs(x), matrix.values) < 1e-6
        assert rows_do_not_depend_on_neighbours(matrix, x)
        assert same_bits(matrix(x, threads=2), whole)


@pytest.mark.parametrize("path", PATHS)
def test_the_largest_sums_of_integers_do_not_overflow(path: str) -> None:
    """All products at their largest, of either sign: what saturating instructions would cut off."""
    for sign in (1, -1):
        rows = np.full((64, 256), -128 * sign if sign > 0 else 127, np.int8)
        matrix = Packed(path, 64, 256, "i8", int8_activations=True)
        matrix.weight.pack(rows, 0, np.ones(64, np.float32))
        x = np.full((7, 256), 127 * sign, np.float32)
        assert (matrix(x) == (rows[0].astype(np.float64) * 127 * sign).sum()).all()
        fourth = Packed(path, 64, 256, "i4", group=128, zero_points=True, int8_activations=True)
        scales, zeros = np.ones((64, 2), np.float32), np.zeros((64, 2), np.float32)
        fourth.weight.pack(np.full((64, 256), 15, np.int8), 0, scales, zeros)
        assert (fourth(x) == 15 * 127 * 256 * sign).all()
        for element, group in (("i8", 0), ("i4", 128)):  # of 16-bit inputs
            wider = Packed(path, 64, 256, element, group=group, zero_points=bool(group))
            if group:
                wider.weight.pack(np.full((64, 256), 15, np.int8), 0, scales, zeros + 16)
            else:
                wider.weight.pack(rows, 0, np.ones(64, np.float32))
            assert relative_error(wider(x), x.astype(np.float64), wider.values) < 1e-6


@pytest.mark.parametrize("path", PATHS)
def test_16_bit_rows_lose_less_than_the_weights(path: str) -> None:
    """An outlier widens the steps of its block: beside what rounding the weights lost, that is nothing."""
    rows, x = draw(66, 384, seed=1), draw(20, 384)
    x[:, 7] *= 1000
    exact = x.astype(np.float64) @ rows.T.astype(np.float64)
    for element, options in (("i8", {}), ("i4", {"group": 128})):
        matrix = packed(path, rows, element, **options)
        by_weights = np.abs(x @ matrix.values.T - exact).mean()
        by_rows = np.abs(matrix(x) - x @ matrix.values.T).mean()
        assert by_rows < (0.25 if "amx" in path else 0.05) * by_weights


@pytest.mark.parametrize("path", PATHS)
def test_activations_that_are_not_finite_give_nan(path: str) -> None:
    x = draw(5, 128)
    x[1, 3], x[3, 100] = np.nan, np.inf
    for element, options in (("i8", {}), ("i4", {"group": 64})):
        found = packed(path, draw(66, 128, seed=1), element, int8_activations=True, **options)(x)
        assert np.isnan(found[[1, 3]]).all() and np.isfinite(found[[0, 2, 4]]).all()
        found = packed(path, draw(66, 128, seed=1), element, **options)(x)
        assert not np.isfinite(found[[1, 3]]).any() and np.isfinite(found[[0, 2, 4]]).all()


@pytest.mark.parametrize("path", PATHS)
def test_integer_products_of_paired_matrices_and_with_bias(path: str) -> None:
    x, bias, residual = draw(9, 128), draw(90, seed=2), draw(9, 45, seed=3)
    for element, options in (("i8", {}), ("i4", {"group": 32}), ("i4", {"group": 64, "zero_points": True})):
        for dynamic in (False, True):
            rows = draw(90, 128, seed=1)
            plain = packed(path, rows, element, int8_activations=dynamic, **options)(x, bias)
            paired = packed(path, rows, element, int8_activations=dynamic, paired=True, **options)
            expected = torch.relu(torch.from_numpy(plain[:, :45])).numpy() * plain[:, 45:] + residual
            assert same_bits(paired(x, bias, residual, "relu"), expected)


def test_groups_and_widths_that_no_kernel_has_are_refused() -> None:
    for group, width in ((16, 64), (96, 192), (64, 96), (0, 64)):
        with pytest.raises(ValueError, match="group must be"):
            native.weight_bytes("portable", 8, width, 4, group)
    with pytest.raises(ValueError, match="131072"):
        native.weight_bytes("portable", 8, 200000, 3, 0, False, False, True)


@pytest.mark.parametrize("value", [-1.0, 16.5, 17.0, 300.0, float("nan"), float("inf")])
def test_zero_points_that_no_byte_holds_are_refused(value: float) -> None:
    matrix = Packed("portable", 2, 64, "i4", group=32, zero_points=True)
    scales, zeros = np.ones((2, 2), np.float32), np.full((2, 2), 8, np.float32)
    zeros[1, 0] = value
    with pytest.raises(ValueError, match=f"zeros must be whole numbers from 0 to 16, given {value:g}"):
        matrix.weight.pack(np.ones((2, 64), np.int8), 0, scales, zeros)
