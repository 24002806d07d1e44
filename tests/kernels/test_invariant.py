"""A row's product is the same bits whatever the other rows are, and narrow weights lose nothing."""

from __future__ import annotations

import pytest
import torch

from armillary.kernels import blocked, invariant, narrow, reference, rows
from armillary.kernels.table import REFERENCE, TORCH, select

SHAPES = [(64, 96), (192, 576), (256, 8), (1024, 200), (2048, 64)]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("width", "out"), SHAPES)
def test_rows_do_not_depend_on_their_neighbours(width: int, out: int, bias: bool, dtype: torch.dtype) -> None:
    x, weight = draw(70, width), draw(out, width, seed=1).to(dtype)
    b = draw(out, seed=2) if bias else None
    with torch.inference_mode():
        whole = invariant.linear(x, weight, b)
        for count in (*range(1, 18), 31, 33, 64):
            assert torch.equal(invariant.linear(x[:count], weight, b), whole[:count]), count
        order = torch.randperm(70, generator=torch.Generator().manual_seed(3))
        assert torch.equal(invariant.linear(x[order], weight, b), whole[order])


@pytest.mark.parametrize(("width", "out"), SHAPES)
def test_rows_of_a_blocked_weight_do_not_depend_on_their_neighbours(width: int, out: int) -> None:
    x, weight, bias = draw(70, width), draw(out, width, seed=1), draw(out, seed=2)
    found = blocked.blocked(weight)
    if found is None:
        pytest.skip("this build of torch blocks no weights, or not independently of rows")
    assert found.shape == weight.shape and blocked.blocked(found) is None and blocked.blocked(weight.half()) is None
    with torch.inference_mode():
        whole = invariant.linear(x, found, bias)
        torch.testing.assert_close(whole, reference.linear(x, weight, bias), atol=1e-3, rtol=1e-4)
        for count in (*range(1, 18), 31, 33, 64):
            assert torch.equal(invariant.linear(x[:count], found, bias), whole[:count]), count


def test_torchs_own_product_would_not_do() -> None:
    """The broken variant: without padding, some number of rows changes some bits here, or padding is idle."""
    x, weight = draw(64, 1024), draw(192, 1024, seed=1)
    whole = torch.nn.functional.linear(x, weight)
    same = [torch.equal(torch.nn.functional.linear(x[:count], weight), whole[:count]) for count in range(1, 9)]
    if all(same):
        pytest.skip("this library gives every number of rows the same bits")
    assert not same[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("width", "out"), [(64, 20), (1024, 1300), (96, 6000)])
def test_narrow_products_are_those_of_the_widened_weight(width: int, out: int, dtype: torch.dtype) -> None:
    x, weight, bias = draw(9, width), draw(out, width, seed=1).to(dtype), draw(out, seed=2).to(dtype)
    with torch.inference_mode():
        got = narrow.narrow_linear(x, weight, bias)
    wanted = x.double() @ weight.double().t() + bias.double()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, atol=2e-6 * width, rtol=0)
    # Closer to the truth than the narrow arithmetic it replaces.
    replaced = torch.nn.functional.linear(x.to(dtype), weight, bias).double()
    assert (got - wanted).abs().max() < 0.05 * (replaced - wanted).abs().max()


@pytest.mark.parametrize(("width", "out", "step"), [(64, 512, 256), (96, 1187 * 128, 128), (256, 768, 256)])
def test_tiled_weights_give_the_same_products(width: int, out: int, step: int) -> None:
    x, weight, bias = draw(20, width), draw(out, width, seed=1).bfloat16(), draw(out, seed=2)
    found = narrow.tiled(weight)
    if found is None:
        pytest.skip("this processor computes with bfloat16 itself")
    assert found.shape == (out // step, width, step)
    with torch.inference_mode():
        whole = invariant.linear(x, found, bias)
        torch.testing.assert_close(whole, invariant.linear(x, weight, bias), atol=1e-4, rtol=1e-5)
        for count in (1, 3, 4, 5, 11, 16):
            assert torch.equal(invariant.linear(x[:count], found, bias), whole[:count]), count
    assert narrow.tiled(weight.float()) is None and narrow.tiled(weight[: 128 + 1]) is None


def test_tiles_fit_their_scratch_and_scratch_serves_all_sizes() -> None:
    assert narrow.tile_rows(1024) * 1024 * 4 <= narrow.TILE_BYTES
    assert narrow.tile_rows(100_000) == 64
    with torch.inference_mode():
        small = invariant.linear(draw(4, 32), draw(40, 32).bfloat16())
        invariant.linear(draw(4, 9000), draw(70, 9000).bfloat16())
        assert torch.equal(invariant.linear(draw(4, 32), draw(40, 32).bfloat16()), small)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_padding_is_measured_for_the_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for count in (1, 5, 8, 63):
            assert rows.padded_rows(count) >= count
            assert rows.padded_rows(rows.padded_rows(count)) == rows.padded_rows(count)
        x, weight = draw(48, 512), draw(96, 512, seed=1)
        with torch.inference_mode():
            whole = invariant.linear(x, weight)
            for count in range(1, 49):
                assert torch.equal(invariant.linear(x[:count], weight), whole[:count]), count
    finally:
        torch.set_num_threads(before)


def test_mixture_rows_do_not_depend_on_their_neighbours() -> None:
    x, gate_up, down = draw(30, 32), draw(5, 48, 32, seed=1), draw(5, 32, 24, seed=2)
    with torch.inference_mode():
        for narrow_type in (torch.float32, torch.bfloat16):
            weights, experts = reference.route(draw(30, 5, seed=3), 2, True)
            args = (gate_up.to(narrow_type), down.to(narrow_type), "silu")
            whole = invariant.mixture(x, weights, experts, *args)
            for row in range(30):
                alone = invariant.mixture(x[row : row + 1], weights[row : row + 1], experts[row : row + 1], *args)
                assert torch.equal(alone, whole[row : row + 1])


def test_both_tables_agree() -> None:
    assert select() is TORCH
    assert select("reference") is REFERENCE
    x, weight = draw(5, 64), draw(30, 64, seed=1)
    with torch.inference_mode():
        torch.testing.assert_close(TORCH.linear(x, weight, None), REFERENCE.linear(x, weight, None))
