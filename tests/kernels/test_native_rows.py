"""The native row-wise kernels against torch, on every path that this processor runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from armillary.kernels import reference

native: Any = pytest.importorskip("armillary.kernels._native", reason="the native kernels are not built")

PATHS: list[str] = native.paths()
WIDTHS = [1, 2, 7, 8, 9, 31, 64, 100, 576, 1025]

pytestmark = pytest.mark.parametrize("path", PATHS)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def apart(rows: int, width: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Rows that do not follow each other in memory."""
    return draw(rows, width + 3, seed=seed, scale=scale)[:, 1 : width + 1]


def same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=2e-6, equal_nan=True)


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(path: str, width: int, offset: bool) -> None:
    x, weight, y = apart(5, width, scale=3.0), draw(width, seed=1), apart(5, width, seed=2)
    wanted = reference.rms_norm(x, weight, 1e-6, offset)
    added = y + wanted
    got = torch.full((5, width + 2), 7.0)
    native.rms_norm(path, x, weight, 1e-6, offset, got[:, :width])
    same(got[:, :width], wanted)
    assert bool((got[:, width:] == 7).all())  # nothing beside the rows
    native.add_norm(path, y, x, weight, 1e-6, offset)
    same(y, added)
    native.rms_norm(path, x, weight, 1e-6, offset, x)  # in place
    assert torch.equal(x, got[:, :width])


def test_norms_of_what_is_not_finite_are_those_of_torch(path: str) -> None:
    x = draw(4, 20)
    x[0, 3], x[1, 19], x[2, 0] = torch.nan, torch.inf, -torch.inf
    got = torch.empty(4, 20)
    native.rms_norm(path, x, torch.ones(20), 1e-6, False, got)
    same(got, reference.rms_norm(x, torch.ones(20), 1e-6, False))
    assert bool(torch.isfinite(got[3]).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 8, 13, 64, 77])
def test_embed(path: str, width: int, dtype: torch.dtype) -> None:
    table = draw(19, width).to(dtype)
    tokens = torch.tensor([0, 18, 4, 4, 1])
    got = torch.empty(5, width)
    native.embed(path, table, tokens, 1.5, got)
    assert torch.equal(got, table[tokens].float() * 1.5)
    for outside in (-1, 19):
        with pytest.raises(ValueError, match=f"tokens must be from 0 to 18, given {outside}"):
            native.embed(path, table, torch.tensor([outside]), 1.0, got[:1])


def test_every_half_precision_number_is_widened_exactly(path: str) -> None:
    bits = torch.from_numpy(np.arange(2**16, dtype=np.uint16).view(np.int16)).view(256, 256)
    for dtype in (torch.float16, torch.bfloat16):
        table, got = bits.view(dtype), torch.empty(256, 256)
        native.embed(path, table, torch.arange(256), 1.0, got)
        torch.testing.assert_close(got, table.float(), atol=0, rtol=0, equal_nan=True)
    again = torch.empty(256, 256)
    native.embed(path, bits.numpy().view(np.uint16), torch.arange(256), 1.0, again)
    torch.testing.assert_close(again, got, atol=0, rtol=0, equal_nan=True)


def test_a_table_of_a_million_rows(path: str) -> None:
    table = torch.arange(1_000_000, dtype=torch.float32)[:, None].expand(-1, 4).contiguous()
    tokens = torch.tensor([999_999, 0, 524_288])
    got = torch.empty(3, 4)
    native.embed(path, table, tokens, 1.0, got)
    assert got[:, 3].tolist() == tokens.tolist()


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(("experts", "count"), [(2, 1), (8, 2), (60, 4), (128, 8), (5, 5), (600, 20)])
def test_route(path: str, experts: int, count: int, renormalize: bool) -> None:
    scores = apart(40, experts, scale=2.0)
    weights, chosen = torch.empty(40, count), torch.empty(40, count, dtype=torch.int64)
    native.route(path, scores, renormalize, weights, chosen)
    wanted, places = reference.route(scores, count, renormalize)
    assert torch.equal(chosen, places)
    same(weights, wanted)


def test_routes_of_equals_and_of_what_is_not_finite(path: str) -> None:
    scores = torch.zeros(4, 6)
    scores[1, [2, 5]] = 1.0
    scores[2, 0] = torch.nan
    scores[3] = -torch.inf
    weights, chosen = torch.empty(4, 3), torch.empty(4, 3, dtype=torch.int64)
    native.route(path, scores, True, weights, chosen)
    assert chosen[:2].tolist() == [[0, 1, 2], [2, 5, 0]]
    same(weights[0], torch.full((3,), 1 / 3))
    assert bool(weights[2:].isnan().all())
    for row in chosen.tolist():
        assert len(set(row)) == 3 and all(0 <= expert < 6 for expert in row)


@pytest.mark.parametrize("width", WIDTHS)
def test_combine(path: str, width: int) -> None:
    terms, weights = apart(12, width), draw(5, 3, seed=1)
    places = torch.randint(0, 12, (5, 3), generator=torch.Generator().manual_seed(2))
    residual = apart(5, width, seed=3)
    wanted = (terms[places].double() * weights[..., None]).sum(1)
    got = torch.empty(5, width)
    native.combine(path, terms, places, weights.view(-1), None, got)
    same(got, wanted.float())
    wanted += residual
    native.combine(path, terms, places, weights.view(-1), residual, residual)
    same(residual, wanted.float())
    with pytest.raises(ValueError, match="places must be from 0 to 11, given 12"):
        native.combine(path, terms, places.clamp(min=12), weights.view(-1), None, got)


@pytest.mark.parametrize("width", WIDTHS)
def test_softcap(path: str, width: int) -> None:
    scores = apart(3, width, scale=40.0)
    scores[0, 0], scores[1, 0], scores[2, 0] = torch.inf, -torch.inf, torch.nan
    wanted = 30.0 * torch.tanh(scores / 30.0)
    native.softcap(path, scores, 30.0)
    torch.testing.assert_close(scores, wanted, atol=1e-30, rtol=1e-6, equal_nan=True)


def test_softcap_of_numbers_of_every_size(path: str) -> None:
    scores = torch.logspace(-30, 3, 4001).repeat(2, 1)
    scores[1].neg_()
    wanted = (30.0 * torch.tanh(scores.double() / 30.0)).float()
    native.softcap(path, scores, 30.0)
    torch.testing.assert_close(scores, wanted, atol=0, rtol=5e-7)


@pytest.mark.parametrize("width", [*WIDTHS, 151_936])
def test_argmax_and_log_sum_exp(path: str, width: int) -> None:
    scores = apart(4, width, scale=10.0)
    scores[3] = -torch.inf
    peaks, places, logs = torch.empty(4), torch.empty(4, dtype=torch.int64), torch.empty(4)
    native.argmax(path, scores, peaks, places)
    wanted = scores.max(dim=1)
    assert torch.equal(peaks, wanted.values) and places[:3].tolist() == wanted.indices[:3].tolist() and places[3] == 0
    native.log_sum_exp(path, scores, logs)
    same(logs, torch.logsumexp(scores.double(), 1).float())


@pytest.mark.parametrize("width", [1, 3, 17, 640, 2000])
def test_peaks_of_equals_and_of_what_is_not_finite(path: str, width: int) -> None:
    scores = torch.zeros(4, width)
    scores[1, width // 2 :] = 1.0
    scores[2, width - 1] = torch.inf
    scores[3, width - 1] = torch.nan
    scores[3, : width - 1] = torch.inf
    peaks, places, logs = torch.empty(4), torch.empty(4, dtype=torch.int64), torch.empty(4)
    native.argmax(path, scores, peaks, places)
    assert places.tolist() == [0, width // 2, width - 1, width - 1]
    assert peaks[:3].tolist() == [0, 1, torch.inf] and math.isnan(peaks[3])
    native.log_sum_exp(path, scores, logs)
    assert logs[2] == torch.inf and math.isnan(logs[3])


def test_results_do_not_depend_on_the_rows_beside(path: str) -> None:
    """Bit for bit, wherever a row stands in memory."""
    x, weight, scores = draw(33, 203, scale=2.0), draw(203, seed=1), draw(33, 4097, scale=5.0)
    y, capped, logs = torch.empty_like(x), scores.clone(), torch.empty(33)
    weights, experts = torch.empty(33, 6), torch.empty(33, 6, dtype=torch.int64)
    native.rms_norm(path, x, weight, 1e-6, False, y)
    native.softcap(path, capped, 20.0)
    native.log_sum_exp(path, scores, logs)
    native.route(path, x, True, weights, experts)
    for row in range(33):
        alone, one = torch.empty(1, 203), slice(row, row + 1)
        native.rms_norm(path, torch.cat([draw(1), x[row]])[1:][None], weight, 1e-6, False, alone)
        assert torch.equal(alone, y[one])
        other = scores[one].clone()
        native.log_sum_exp(path, other, log := torch.empty(1))
        native.softcap(path, other, 20.0)
        assert torch.equal(other, capped[one]) and torch.equal(log, logs[one])
        native.route(path, x[one], True, w := torch.empty(1, 6), torch.empty(1, 6, dtype=torch.int64))
        assert torch.equal(w, weights[one])
    # The broken variant: another order of the same sum is other bits for some row, so the comparison can fail.
    folded = (x[:, :101].square().sum(1) + x[:, 101:].square().sum(1)) / 203 + 1e-6
    assert not torch.equal(x * folded.rsqrt()[:, None] * weight, y)


def test_no_rows_are_no_work(path: str) -> None:
    none, ids = torch.empty(0, 16), torch.empty(0, dtype=torch.int64)
    native.rms_norm(path, none, torch.ones(16), 1e-6, False, none)
    native.add_norm(path, none, none, torch.ones(16), 1e-6, False)
    native.embed(path, torch.ones(3, 16), ids, 1.0, none)
    native.route(path, none, True, torch.empty(0, 2), torch.empty(0, 2, dtype=torch.int64))
    native.combine(path, torch.ones(3, 16), torch.empty(0, 2, dtype=torch.int64), torch.empty(0), None, none)
    native.softcap(path, none, 1.0)
    native.argmax(path, none, torch.empty(0), ids)
    native.log_sum_exp(path, none, torch.empty(0))


def test_what_does_not_fit_is_refused_by_name(path: str) -> None:
    x, y, one = draw(4, 16), torch.empty(4, 16), torch.ones(16)
    with pytest.raises(ValueError, match="the weight's size must be 16, given 15"):
        native.rms_norm(path, x, torch.ones(15), 1e-6, False, y)
    with pytest.raises(ValueError, match="the result's number of rows must be 4, given 3"):
        native.rms_norm(path, x, one, 1e-6, False, y[:3])
    with pytest.raises(ValueError, match="x must have contiguous rows"):
        native.rms_norm(path, draw(16, 4).t(), one, 1e-6, False, y)
    with pytest.raises(ValueError, match="rows that do not overlap"):
        native.rms_norm(path, x, one, 1e-6, False, torch.empty(1, 16).expand(4, 16))
    with pytest.raises(ValueError, match="rows that do not overlap"):
        native.softcap(path, torch.empty(1, 16).expand(4, 16), 1.0)
    with pytest.raises(TypeError):  # a copy of another type would be written to, and lost
        native.softcap(path, x.double(), 1.0)
    with pytest.raises(ValueError, match="cap must be above 0"):
        native.softcap(path, x, 0.0)
    with pytest.raises(ValueError, match="must be from 1 to 16, given 17"):
        native.route(path, x, True, torch.empty(4, 17), torch.empty(4, 17, dtype=torch.int64))
    apart = torch.empty(1, 8, dtype=torch.float32)[:, ::2]  # of a single row too
    with pytest.raises(ValueError, match="weights must have contiguous rows"):
        native.route(path, x[:1], True, apart, torch.empty(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="rows of no width"):
        native.argmax(path, torch.empty(2, 0), torch.empty(2), torch.empty(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="must be float32, bfloat16 or float16"):
        native.embed(path, torch.zeros(3, 16, dtype=torch.int32), torch.zeros(4, dtype=torch.int64), 1.0, y)
    with pytest.raises(ValueError, match="path must be one of"):
        native.softcap(path + "x", x, 1.0)
    # Rows that are repeated are fine where they are only read.
    native.rms_norm(path, x[:1].expand(4, 16), one, 1e-6, False, y)
    same(y, F.rms_norm(x[:1].expand(4, 16), (16,), one, 1e-6))
