"""Native linear layers: right against float64, and the same bits for a row whatever is computed with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from armillary.models.bfloat16 import narrowed
from packed_matrices import (
    ACTIVATIONS,
    BF16,
    F16,
    PATHS,
    Packed,
    native,
    packed,
    rows_do_not_depend_on_neighbours,
    same_bits,
)

ROWS = (1, 2, 3, 5, 7, 16, 17, 64, 129)
SHAPES = ((1, 1), (3, 5), (64, 32), (70, 33), (17, 130), (130, 257), (200, 384))
FLOATS = ("f32", "bf16", "f16")
# Formats with the options that they are packed with.
FORMATS = (
    ("f32", {}),
    ("bf16", {}),
    ("f16", {}),
    ("i8", {}),
    ("i4", {"group": 32}),
    ("i4", {"group": 64, "zero_points": True}),
    ("i4", {"group": 128}),
    ("i4", {"group": 32, "scales": BF16}),
    ("i4", {"group": 64, "zero_points": True, "scales": F16}),
)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def fitting(width: int, options: dict[str, int]) -> int:
    group = options.get("group", 1)
    return -(-width // group) * group


def close(y: np.ndarray, x: np.ndarray, values: np.ndarray) -> bool:
    exact, size = x @ values.T, np.abs(x) @ np.abs(values).T
    return bool((np.abs(y - exact) <= 1e-6 * size + 1e-30).all())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("element", "options"), FORMATS)
def test_products_are_right_and_rows_independent(path: str, element: str, options: dict[str, int]) -> None:
    for out, narrow in SHAPES:
        width = fitting(narrow, options)
        x, matrix = draw(129, width), packed(path, draw(out, width, seed=1), element, **options)
        values = matrix.values
        whole = matrix(x)
        assert close(whole, matrix.inputs(x), values), (out, width)
        for rows in ROWS:
            assert same_bits(matrix(x[:rows]), whole[:rows]), (out, width, rows)
    assert rows_do_not_depend_on_neighbours(matrix, x)


@pytest.mark.parametrize("path", PATHS)
def test_every_number_of_float16_is_widened_exactly(path: str) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)[:, None]
    found = packed(path, halves, "f16")(np.ones((1, 1), np.float32))[0]
    assert np.array_equal(found, halves[:, 0].astype(np.float32), equal_nan=True)
    exact = halves[np.isfinite(halves)].astype(np.float32)[:, None]
    matrix = Packed(path, len(exact), 32, "i4", group=32, scales=F16)
    matrix.weight.pack(np.eye(1, 32, dtype=np.int8).repeat(len(exact), 0), 0, exact)
    for rows in (1, 6):
        found = matrix(np.eye(1, 32, dtype=np.float32).repeat(rows, 0))
        np.testing.assert_allclose(found, exact.T.repeat(rows, 0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("element", "options"), FORMATS)
def test_neither_threads_nor_cuts_change_bits(path: str, element: str, options: dict[str, int]) -> None:
    width = fitting(200, options)
    x, matrix = draw(20, width), packed(path, draw(500, width, seed=1), element, **options)
    units = native.matrix_units(matrix.weight)
    for rows in (1, 4, 20):
        whole = matrix(x[:rows])
        for threads in (2, 3):
            assert same_bits(matrix(x[:rows], threads=threads), whole)
        for cuts in ([0, 1, units], [0, 0, 3, 4, units], list(range(units + 1))):
            assert same_bits(matrix(x[:rows], threads=2, cuts=cuts), whole)


@pytest.mark.parametrize("path", PATHS)
def test_a_variant_kernel_is_caught(path: str) -> None:
    """A product split over the inputs where there is one row, as kernels that chase speed do."""
    x, rows = draw(40, 256), draw(70, 256, seed=1)
    whole, left, right = packed(path, rows), packed(path, rows[:, :128]), packed(path, rows[:, 128:])

    def variant(some: np.ndarray) -> np.ndarray:
        if len(some) > 1:
            return whole(some)
        return left(np.ascontiguousarray(some[:, :128])) + right(np.ascontiguousarray(some[:, 128:]))

    assert rows_do_not_depend_on_neighbours(whole, x)
    assert not rows_do_not_depend_on_neighbours(variant, x)


def activated(name: str, x: np.ndarray) -> np.ndarray:
    t = torch.from_numpy(x)
    if name == "silu":
        return torch.nn.functional.silu(t).numpy()
    if name == "relu":
        return torch.relu(t).numpy()
    return torch.nn.functional.gelu(t, approximate="tanh" if name == "gelu_tanh" else "none").numpy()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("element", ["f32", "bf16", "i8"])
def test_bias_and_residual_are_added(path: str, element: str) -> None:
    x, matrix = draw(19, 96), packed(path, draw(75, 96, seed=1), element)
    bias, residual = draw(75, seed=2), draw(19, 75, seed=3)
    product = matrix.inputs(x) @ matrix.values.T
    np.testing.assert_allclose(matrix(x, bias), product + bias, atol=3e-5)
    np.testing.assert_allclose(matrix(x, None, residual), product + residual, atol=3e-5)
    y = residual.copy()  # the residual may be the result's own memory
    native.linear(matrix.weight, x, y, bias, y)
    assert same_bits(y, matrix(x, bias, residual))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_paired_matrices_give_gated_products(path: str, activation: str) -> None:
    for half in (1, 31, 32, 90):
        x, matrix = draw(20, 70), packed(path, draw(2 * half, 70, seed=1), "bf16", paired=True)
        bias, residual = draw(2 * half, seed=2), draw(20, half, seed=3)
        product = matrix.inputs(x) @ matrix.values.T + bias
        expected = activated(activation, product[:, :half]) * product[:, half:] + residual
        found = matrix(x, bias, residual, activation)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-5)
        for rows in (1, 5):
            assert same_bits(matrix(x[:rows], bias, residual[:rows], activation), found[:rows])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("element", FLOATS)
def test_what_is_not_finite_goes_where_arithmetic_takes_it(path: str, element: str) -> None:
    x, matrix = draw(9, 37), packed(path, draw(67, 37, seed=1), element)
    x[1, 3], x[4, 36], x[5, 0], x[7, 1], x[7, 2] = np.nan, np.inf, -np.inf, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        exact = x.astype(np.float64) @ matrix.values.T
    for rows in (1, 3, 9):
        for first in range(0, 10 - rows, 2):
            found, expected = matrix(x[first : first + rows]), exact[first : first + rows]
            assert (np.isnan(found) == np.isnan(expected)).all()
            infinite = np.isinf(expected)
            assert (found[infinite] == expected[infinite]).all() and np.isfinite(found[np.isfinite(expected)]).all()


@pytest.mark.parametrize("path", PATHS)
def test_values_are_kept_as_they_are(path: str) -> None:
    rows = torch.randn(130, 77, generator=torch.Generator().manual_seed(1))
    for element, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)):
        narrow = rows.to(dtype)
        assert (packed(path, narrow, element).values == narrow.double().numpy()).all()
        assert (packed(path, rows, element).values == narrow.double().numpy()).all()  # rounded to nearest on the way
    bits = narrowed(rows.numpy())  # as numpy has bfloat16
    assert (packed(path, bits, "bf16").values == rows.bfloat16().double().numpy()).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("paired", [False, True])
def test_rows_may_be_packed_in_pieces_and_in_any_order(path: str, paired: bool) -> None:
    rows = draw(330, 40, seed=1)
    for element, options in (("bf16", {}), ("i8", {}), ("f32", {})):
        matrix = Packed(path, 330, 40, element, paired=paired, **options)
        for first in (320, 256, 0, 64, 128, 192):
            matrix.weight.pack(rows[first : first + 64], first)
        x = draw(3, 40)
        assert same_bits(matrix(x), packed(path, rows, element, paired=paired)(x))
    x = draw(3, 40)
    memory = packed(path, rows, "f32", paired=paired)
    assert close(memory.values, np.eye(330), rows.T.astype(np.float64))


@pytest.mark.parametrize("path", PATHS)
def test_no_rows_and_rows_apart_in_memory(path: str) -> None:
    matrix = packed(path, draw(70, 50, seed=1))
    assert matrix(draw(0, 50)).shape == (0, 70)
    x, y = draw(5, 80), np.full((5, 100), 7, np.float32)
    native.linear(matrix.weight, x[:, 10:60], y[:, 20:90])
    assert same_bits(np.ascontiguousarray(y[:, 20:90]), matrix(np.ascontiguousarray(x[:, 10:60])))
    assert (y[:, :20] == 7).all() and (y[:, 90:] == 7).all()


@pytest.mark.parametrize("path", PATHS)
def test_what_does_not_fit_is_refused(path: str) -> None:
    matrix = packed(path, draw(70, 50, seed=1))
    for x, y in ((draw(2, 49), draw(2, 70)), (draw(2, 50), draw(2, 71)), (draw(2, 50), draw(3, 70))):
        with pytest.raises(ValueError, match="must be"):
            native.linear(matrix.weight, x, y)
    with pytest.raises(ValueError, match="bias"):
        matrix(draw(2, 50), draw(71))
    with pytest.raises(ValueError, match="cuts"):
        matrix(draw(2, 50), cuts=[0, 5])
    with pytest.raises(ValueError, match="threads"):
        matrix(draw(2, 50), threads=0)
    for out, width in ((1 << 60, 64), (64, 1 << 60), (1 << 62, 1 << 62)):  # whose bytes 64 bits do not count
        with pytest.raises(ValueError, match="at most 2.48 numbers, given"):
            native.weight_bytes(path, out, width, 0)
