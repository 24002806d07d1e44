"""Scales of 4-bit groups in 32 and in 16 bits: what they take, that results do not know of it, and what is chosen."""

from __future__ import annotations

import numpy as np
import pytest

from armillary.models.bfloat16 import narrowed, widened
from packed_matrices import BF16, F16, PATHS, Packed, native, packed, rows_do_not_depend_on_neighbours, same_bits

F32 = 0
GROUPS = ((32, False), (32, True), (64, False), (64, True), (128, False), (128, True))


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def of_integers(path: str, out: int, group: int, zero_points: bool, scales: np.ndarray, kept: int, a8: bool) -> Packed:
    """A matrix of drawn integers and zero points at the given scales [out, groups]."""
    random, width = np.random.default_rng(5), group * scales.shape[1]
    rows = random.integers(0 if zero_points else -8, 16 if zero_points else 8, (out, width)).astype(np.int8)
    zeros = random.integers(0, 17, scales.shape).astype(np.float32) if zero_points else None
    matrix = Packed(
        path, out, width, "i4", group=group, zero_points=zero_points, int8_activations=a8, scales=kept
    )  # fmt: skip
    matrix.weight.pack(rows, 0, scales, zeros)
    wanted = (rows - (np.repeat(zeros, group, 1) if zeros is not None else 0)).astype(np.float32)
    assert np.array_equal(matrix.values, wanted * np.repeat(scales, group, 1), equal_nan=True)
    return matrix


def numbers_of(kept: int, count: int) -> np.ndarray:
    """Scales that are exact in a format, and few of them in the other: of both signs, zero, and some below the normal
    range of float16."""
    random = np.random.default_rng(7)
    if kept == F16:
        found = (random.uniform(-2e-3, 2e-3, count)).astype(np.float16)
        found[:4] = 0, 3e-6, -6e-8, 5e-5
        return found.astype(np.float32)
    drawn = random.standard_normal(count).astype(np.float32) * np.float32(1e-3)
    drawn[:4] = 0, 1e-9, -1e-7, 1e-3
    return widened(narrowed(drawn))


@pytest.mark.parametrize("path", PATHS)
def test_a_group_takes_its_scales_its_zero_points_and_its_weights(path: str) -> None:
    for group, zero_points in GROUPS:
        for kept, scale_bytes in ((F32, 4), (BF16, 2), (F16, 2)):
            taken = native.weight_bytes(path, 128, 4 * group, 4, group, zero_points, False, False, kept)
            assert taken == 2 * 4 * 64 * (scale_bytes + zero_points + group // 2)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("a8", [False, True])
@pytest.mark.parametrize("kept", [BF16, F16])
def test_results_do_not_know_how_scales_are_kept(path: str, a8: bool, kept: int) -> None:
    x = draw(20, 256)
    for group, zero_points in GROUPS:
        scales = numbers_of(kept, 70 * 256 // group).reshape(70, -1)
        wide, narrow = (of_integers(path, 70, group, zero_points, scales, how, a8) for how in (F32, kept))
        assert len(narrow.memory) < len(wide.memory)
        whole = narrow(x)
        assert np.isfinite(whole).all() and same_bits(whole, wide(x))
        for rows in (1, 2, 5, 6, 7):
            assert same_bits(narrow(x[:rows]), whole[:rows])
        assert rows_do_not_depend_on_neighbours(narrow, x)
        assert same_bits(narrow(x, threads=2), whole)


@pytest.mark.parametrize("kept", [BF16, F16])
def test_scales_that_a_format_does_not_hold_are_refused(kept: int) -> None:
    matrix = Packed("portable", 2, 64, "i4", group=32, scales=kept)
    rows, good = np.ones((2, 64), np.int8), np.ones((2, 2), np.float32)
    matrix.weight.pack(rows, 0, good)
    for value in (1.0001, 1e30 if kept == F16 else 1 + 2**-10, -(1 + 2**-12)):
        scales = good.copy()
        scales[1, 0] = value
        with pytest.raises(ValueError, match="scales must be numbers of the format that the matrix keeps"):
            matrix.weight.pack(rows, 0, scales)
        wide = Packed("portable", 2, 64, "i4", group=32)
        wide.weight.pack(rows, 0, scales)
        assert wide.values[1, 0] == np.float32(value)
    scales[1, 0] = np.nan
    matrix.weight.pack(rows, 0, scales)
    assert np.isnan(matrix.values[1, :32]).all() and (matrix.values[0] == 1).all()


def test_only_4_bit_matrices_have_such_scales() -> None:
    for element, scales in ((3, BF16), (0, F16), (4, 3), (4, 4), (4, -1)):
        with pytest.raises(ValueError, match=f"scales must be 0, or of a 4-bit matrix also .* given {scales}"):
            native.weight_bytes("portable", 8, 64, element, 32 if element == 4 else 0, scales=scales)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("group", [32, 64, 128])
def test_codes_are_chosen_for_scales_as_they_are_kept(path: str, group: int) -> None:
    """The nearest codes at the scale that is read back, not at the one that it was rounded from."""
    rows = draw(64, 256, seed=1)
    rows[5, :group] = 0
    matrix = packed(path, rows, "i4", group=group, scales=BF16)
    blocks = matrix.memory.reshape(256 // group, 64 * (2 + group // 2))
    scales = widened(blocks[:, :128].copy().view(np.uint16)).T[:, :, None]
    assert scales[5, 0] == 0 and (np.delete(scales[:, 0], 5) != 0).all()
    with np.errstate(divide="ignore"):
        inverse = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
    grouped = rows.reshape(64, -1, group)
    codes = np.clip(np.rint(grouped * inverse), -8, 7)
    assert np.array_equal(matrix.values, (codes * scales).reshape(rows.shape))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("zero_points", [False, True])
def test_narrow_scales_cost_nothing_that_can_be_seen(path: str, zero_points: bool) -> None:
    rows = draw(192, 512, seed=1)
    for group in (32, 128):
        errors = [
            ((packed(path, rows, "i4", group=group, zero_points=zero_points, scales=kept).values - rows) ** 2).sum()
            for kept in (F32, BF16, F16)
        ]
        assert errors[1] < 1.002 * errors[0] and errors[2] < 1.002 * errors[0], errors


@pytest.mark.parametrize("path", PATHS)
def test_weights_of_any_size_have_scales_of_bfloat16(path: str) -> None:
    """Rows and groups of which float16 would hold nothing, beside others."""
    rows = draw(64, 128, seed=1)
    rows[1] *= np.float32(1e-20)
    rows[2, :32] *= np.float32(1e20)
    rows[3, 5] = np.nan
    found = packed(path, rows, "i4", group=32, scales=BF16).values
    for row in (0, 1, 2):
        got, wanted = found[row].reshape(-1, 32), rows[row].reshape(-1, 32)
        assert (np.abs(got - wanted) <= np.abs(wanted).max(1, keepdims=True) / 6).all()
    assert np.isnan(found[3, :32]).all() and np.isfinite(found[3, 32:]).all()
