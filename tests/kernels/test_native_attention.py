"""Native paged attention agrees with softmax attention in float64, on every path and for every feature."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from armillary.kernels import reference
from kernels.attention_layer import ELEMENTS, EMULATED, PAIRED, PATHS, Floats, Layer, Shape, cases, draw_rows, native

ROUNDED = 100
"""How much more may be wrong where queries and weights are rounded to 16 bits: a fraction of what 8 bits change."""


def attend_plainly(layer: Layer, q: Floats, keys: Floats, values: Floats, start: int) -> Floats:
    """Attention in float64 of queries [T, heads * dim] at positions from `start` on over [length, kv_heads, dim]."""
    shape = layer.shape
    wide = q.reshape(len(q), shape.heads, shape.dim).astype(np.float64)
    group = shape.heads // shape.kv_heads
    k, v = (np.repeat(x.astype(np.float64), group, axis=1) for x in (keys, values))
    scores = np.einsum("thd,shd->hts", wide, k) * shape.scale
    if shape.softcap:
        scores = np.tanh(scores / shape.softcap) * shape.softcap
    query, key = np.arange(start, start + len(q))[:, None], np.arange(len(k))
    hidden = key > query
    if shape.window:
        hidden |= key <= query - shape.window
    scores = np.where(hidden, -np.inf, scores)
    if layer.sinks is not None:
        extra = np.broadcast_to(layer.sinks[:, None, None].astype(np.float64), (*scores.shape[:2], 1))
        scores = np.concatenate([scores, extra], axis=2)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    return np.einsum("hts,shd->thd", weights[:, :, : len(k)], v).reshape(len(q), -1)


def table_of(blocks: int, seed: int = 7) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(blocks).astype(np.int64)


def as_multiplied(layer: Layer, q: Floats) -> Floats:
    """Queries as they are multiplied: where pairs of bfloat16 are, rounded to it."""
    return torch.from_numpy(q).bfloat16().float().numpy() if layer.paired else q


def lost_in_weights(layer: Layer, q: Floats, keys: Floats, values: Floats, wanted: Floats) -> Floats | float:
    """How much rounding weights to bfloat16 may change each result.

    A weight w becomes w (1 + d), |d| <= u = 2^-8, in the sum of values and in the sum of weights alike, and so a result
    the sum of w (1 + d) v over that of w (1 + d): off by the sum of w d (v - result), at most
    u (sum of w |v| + |result|), over the sum of weights, which is at least 1 - u of what it was.
    """
    if not layer.paired:
        return 0.0
    unit = 2.0**-8
    return (attend_plainly(layer, q, keys, np.abs(values), 0) + np.abs(wanted)) * unit / (1 - unit)


def check(path: str, shape: Shape, length: int = 150, chunk: int = 97) -> None:
    """One sequence in two chunks and then one token after another agrees with the reference."""
    blocks = -(-length // shape.block_size)
    layer = Layer(path, shape, blocks)
    table = table_of(blocks)
    rows = draw_rows(shape, length)
    outs, queries = [], []
    cuts = [0, chunk, length - 3, length - 2, length - 1, length]
    for begin, end in zip(cuts, cuts[1:], strict=False):
        out, qkv = layer.step(rows[begin:end], [end - begin], [begin], table[None])
        outs.append(out)
        queries.append(qkv[:, : shape.heads * shape.dim])
    keys, values = layer.stored(table, length)
    q = as_multiplied(layer, np.concatenate(queries))
    wanted = attend_plainly(layer, q, keys, values, 0)
    # A score is rounded in proportion to its size, and softmax passes that on as it is.
    size = max(1.0, shape.scale * shape.dim**0.5) * (ROUNDED if shape.element == "i8" else 1)
    allowed = 2e-5 * size * np.abs(wanted) + 4e-6 * size + lost_in_weights(layer, q, keys, values, wanted)
    off = np.abs(np.concatenate(outs) - wanted)
    assert (off <= allowed).all(), f"{(~(off <= allowed)).sum()} of {off.size} are off, by {off.max():.3g} at most"


@pytest.mark.parametrize("dim", [1, 7, 32, 64, 80, 96, 100, 128, 256, 512])
@pytest.mark.parametrize(("path", "element"), cases("f32", "bf16", "i8"))
def test_head_sizes(path: str, element: str, dim: int) -> None:
    check(path, Shape(dim=dim, element=element, scale=dim**-0.5))


@pytest.mark.parametrize("block_size", [1, 3, 8, 16, 24, 32, 100, 1024])
@pytest.mark.parametrize(("path", "element"), cases(*ELEMENTS))
def test_block_sizes(path: str, block_size: int, element: str) -> None:
    check(path, Shape(block_size=block_size, element=element, dim=32))


@pytest.mark.parametrize("path", [*PATHS, *EMULATED])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (6, 2), (7, 1), (12, 1), (16, 8), (100, 1)])
def test_grouped_heads(path: str, heads: int, kv_heads: int) -> None:
    check(path, Shape(heads=heads, kv_heads=kv_heads, dim=16, element="bf16"))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "shape",
    [
        Shape(window=1),
        Shape(window=20),
        Shape(window=64),
        Shape(window=65, element="bf16", block_size=3),
        Shape(softcap=2.0),
        Shape(sinks=True),
        Shape(sinks=True, softcap=5.0, window=30, element="f16"),
        Shape(scale=3.0),
    ],
)
def test_windows_caps_and_sinks(path: str, shape: Shape) -> None:
    check(path, shape, length=200)


@pytest.mark.parametrize("path", PAIRED)
@pytest.mark.parametrize(
    "shape",
    [
        Shape(window=1, element="bf16"),
        Shape(window=65, element="bf16"),
        Shape(window=41, element="bf16", block_size=2, heads=6),
        Shape(softcap=2.0, element="bf16"),
        Shape(sinks=True, softcap=5.0, window=31, element="bf16", dim=48),
        Shape(scale=3.0, element="bf16"),
    ],
)
def test_windows_caps_and_sinks_in_pairs(path: str, shape: Shape) -> None:
    check(path, shape, length=200)


@pytest.mark.parametrize("path", PAIRED)
@pytest.mark.parametrize(("spread", "shift"), [(1.0, 0.0), (3.0, 0.0), (1.0, 1.0)])
def test_pairs_are_no_further_off_than_torch(path: str, spread: float, shift: float) -> None:
    """Queries, keys and values of bfloat16 by themselves and by torch's own attention, each against float64."""
    shape = Shape(element="bf16", dim=128, scale=128**-0.5)
    rows = draw_rows(shape, 300)
    rows[:, : 4 * 128] *= spread
    rows[:, 6 * 128 :] += shift
    exact = torch.from_numpy(rows).bfloat16()
    layer, table = Layer(path, shape, 19), table_of(19)
    out, _ = layer.step(exact.float().numpy(), [300], [0], table[None])
    wanted = attend_plainly(layer, exact[:, : 4 * 128].float().numpy(), *layer.stored(table, 300), 0)
    q, k, v = (x.reshape(300, -1, 128).transpose(0, 1) for x in exact.split([4 * 128, 2 * 128, 2 * 128], dim=1))
    theirs = torch.nn.functional.scaled_dot_product_attention(
        q[None], k[None], v[None], is_causal=True, enable_gqa=True
    )
    ours = np.abs(out - wanted)
    other = np.abs(theirs[0].transpose(0, 1).reshape(300, -1).double().numpy() - wanted)
    assert ours.max() <= other.max() and (ours**2).mean() <= (other**2).mean()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("norm", [None, "head", "full"])
@pytest.mark.parametrize(("dim", "rotated"), [(64, 64), (64, 16), (80, 20), (12, 6), (32, 0)])
def test_store_norms_and_rotates(path: str, norm: str | None, dim: int, rotated: int) -> None:
    shape = Shape(dim=dim, norm=norm, rotated=rotated, offset=norm == "full")
    layer = Layer(path, shape, 4)
    rows = draw_rows(shape, 40)
    table = np.arange(4, dtype=np.int64)
    _, qkv = layer.step(rows, [40], [0], table[None], threads=2)
    keys, values = layer.stored(table, 40)
    sizes = [n * dim for n in (shape.heads, shape.kv_heads, shape.kv_heads)]
    q, k, v = torch.from_numpy(rows).split(sizes, dim=1)
    cos, sin = layer.angles(np.arange(40))
    found = []
    for x, weight in ((q, layer.norms[0]), (k, layer.norms[1])):
        if weight is not None:
            x = x if norm == "full" else x.reshape(40, -1, dim)
            x = reference.rms_norm(x, torch.from_numpy(weight), 1e-6, shape.offset)
        x = x.reshape(40, -1, dim)
        if cos is not None and sin is not None:
            x = reference.rotary(x, torch.from_numpy(cos)[:, None], torch.from_numpy(sin)[:, None])
        found.append(x.numpy())
    np.testing.assert_allclose(qkv[:, : sizes[0]].reshape(found[0].shape), found[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(keys, found[1], rtol=1e-5, atol=1e-6)
    assert (values == v.reshape(40, -1, dim).numpy()).all()
    assert (qkv[:, sizes[0] :] == rows[:, sizes[0] :]).all()


@pytest.mark.parametrize("path", PATHS)
def test_narrow_elements_round_as_torch_does(path: str) -> None:
    rows = draw_rows(Shape(), 16)
    rows[0, :8] = [1e-8, 6e-8, -3e-6, 65519.0, 65520.0, np.inf, -0.0, 1e30]
    rows[:, -8:] = rows[:, :8]
    for element, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)):
        layer = Layer(path, Shape(element=element), 1)
        layer.step(rows, [16], [0], np.zeros((1, 1), dtype=np.int64))
        kv = torch.from_numpy(rows[:, 4 * 64 :]).to(dtype).float().numpy().reshape(16, 2, 2, 64)
        keys, values = layer.stored(np.zeros(1, dtype=np.int64), 16)
        assert (keys == kv[:, 0]).all() and (values == kv[:, 1]).all()


@pytest.mark.parametrize("path", PATHS)
def test_int8_is_within_half_a_step(path: str) -> None:
    shape = Shape(element="i8", dim=80, block_size=3)
    layer = Layer(path, shape, 20)
    rows = draw_rows(shape, 60)
    rows[5] = 0
    rows[6] *= 1e-3
    table = table_of(20)
    out, qkv = layer.step(rows, [60], [0], table[None])
    exact = rows[:, 4 * 80 :].reshape(60, 2, 2, 80)
    pair = layer.stored(table, 60)
    for side, found in enumerate(pair):
        step = np.abs(exact[:, side]).max(axis=2, keepdims=True) / 127
        assert (np.abs(found - exact[:, side]) <= step * 0.5001).all()
    wanted = attend_plainly(layer, qkv[:, : 4 * 80], *pair, 0)
    np.testing.assert_allclose(out, wanted, rtol=2e-5 * ROUNDED, atol=4e-6 * ROUNDED)
    # And near what it would be without rounding: half a step in every value, and what half a step does to scores.
    plain = attend_plainly(layer, qkv[:, : 4 * 80], exact[:, 0], exact[:, 1], 0)
    assert np.abs(out - plain).max() < 0.1


@pytest.mark.parametrize("path", PATHS)
def test_int8_sums_do_not_overflow(path: str) -> None:
    """The longest heads whose every product is the largest there is, of either sign."""
    shape = Shape(element="i8", heads=2, kv_heads=1, dim=512, scale=1e-6)
    layer = Layer(path, shape, 5)
    rows = np.full((70, shape.width), 100.0, dtype=np.float32)
    rows[1::2, 512:] *= -1
    rows[:, -512:] = np.where(np.arange(70) % 3, 3.0, -3.0)[:, None]
    out, _ = layer.step(rows, [70], [0], np.arange(5, dtype=np.int64)[None])
    wanted = attend_plainly(layer, rows[:, :1024], *layer.stored(np.arange(5, dtype=np.int64), 70), 0)
    np.testing.assert_allclose(out, wanted, rtol=2e-5 * ROUNDED, atol=4e-6 * ROUNDED)


@pytest.mark.parametrize(("path", "element"), cases(*ELEMENTS))
def test_clear_sets_positions_to_zero(path: str, element: str) -> None:
    shape = Shape(element=element, block_size=8)
    layer = Layer(path, shape, 6)
    table = table_of(6)
    layer.step(draw_rows(shape, 48), [48], [0], table[None])
    before = layer.stored(table, 48)
    layer.cache.clear(table, 5, 20)
    after = layer.stored(table, 48)
    for old, new in zip(before, after, strict=True):
        assert (new[5:25] == 0).all()
        kept = np.r_[0:5, 25:48]
        assert (new[kept] == old[kept]).all() and (old[5:25] != 0).any(axis=(1, 2)).all()


@pytest.mark.parametrize(("path", "element"), cases("f32", "bf16"))
@pytest.mark.parametrize(("where", "block_size"), [(60, 16), (61, 16), (63, 3), (64, 16), (65, 6)])
def test_infinite_and_missing_numbers_stay_where_they_are(path: str, element: str, where: int, block_size: int) -> None:
    """NaN of one token spoils what sees it, in that head, and nothing else."""
    shape = Shape(element=element, dim=32, block_size=block_size)
    blocks = -(-100 // block_size)
    rows, table = draw_rows(shape, 100), table_of(blocks)
    clean, _ = Layer(path, shape, blocks).step(rows, [100], [0], table[None])
    for side in (4, 6):  # the first key's head, then the first value's
        for bad in (np.nan, np.inf):
            spoilt = rows.copy()
            spoilt[where, side * 32 : (side + 1) * 32] = bad
            out, _ = Layer(path, shape, blocks).step(spoilt, [100], [0], table[None])
            assert (out[:where] == clean[:where]).all() and (out[:, 64:] == clean[:, 64:]).all()
            assert not np.isfinite(out[where:, :64]).any()


@pytest.mark.parametrize("path", PAIRED)
@pytest.mark.parametrize("window", [9, 10, 70])
def test_what_a_window_left_behind_is_not_touched(path: str, window: int) -> None:
    """A window begins in the middle of a pair, or between two."""
    shape = Shape(element="bf16", dim=32, window=window)
    rows, table = draw_rows(shape, 160), table_of(10)
    clean, _ = Layer(path, shape, 10).step(rows, [160], [0], table[None])
    for where in (30, 31):
        spoilt = rows.copy()
        spoilt[where, 6 * 32 : 7 * 32] = np.nan
        for cuts in ([160], [150, 1, 1, 1, 7]):
            layer, start, outs = Layer(path, shape, 10), 0, []
            for count in cuts:
                outs.append(layer.step(spoilt[start : start + count], [count], [start], table[None])[0])
                start += count
            out = np.concatenate(outs)
            seen = np.zeros(160, dtype=bool)
            seen[where : where + window] = True
            assert (out[~seen] == clean[~seen]).all() and not np.isfinite(out[seen, :64]).any()


def test_no_rows_is_no_work() -> None:
    layer = Layer(PATHS[-1], Shape(), 1)
    out, _ = layer.step(draw_rows(Shape(), 0), [], [], np.zeros((0, 1), dtype=np.int64))
    assert out.shape == (0, 256)


def test_what_a_cache_cannot_hold_is_refused() -> None:
    for wrong in (replace(Shape(), dim=513), replace(Shape(), dim=0), replace(Shape(), block_size=0)):
        with pytest.raises(ValueError, match="must be"):
            Layer(PATHS[0], wrong, 1)
    with pytest.raises(ValueError, match="blocks must be of at most 2.56 bytes in all"):
        native.KvCache(PATHS[0], 1 << 30, 0, 1 << 14, 512, 1 << 20)
    layer = Layer(PATHS[0], Shape(), 2)
    rows = draw_rows(Shape(), 3)
    for table in (np.array([[2]]), np.array([[-1]]), np.zeros((1, 0), dtype=np.int64)):
        with pytest.raises(ValueError, match="must"):
            layer.step(rows, [3], [0], table)
