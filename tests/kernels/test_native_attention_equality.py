"""A row of native attention is the same bits whatever is computed with it and however the work is cut."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from kernels.attention_layer import EMULATED, PATHS, Floats, Layer, Shape, cases, draw_rows

LENGTHS = [150, 1, 130, 70, 64, 9]
"""Of the sequences. The first is the one whose bits are compared with those it has alone; all are."""
Play = Callable[[Shape, list[Floats], int, int, int, bool], list[Floats]]


def tables_of(lengths: list[int], block_size: int, seed: int) -> npt.NDArray[np.int64]:
    """Tables over separate blocks in random order, one number past the end standing where nothing may be read."""
    sizes = [-(-length // block_size) for length in lengths]
    order = np.random.default_rng(seed).permutation(sum(sizes)).astype(np.int64)
    found = np.full((len(lengths), max(sizes)), 10**12, dtype=np.int64)
    for row, size, end in zip(found, sizes, np.cumsum(sizes), strict=True):
        row[:size] = order[end - size : end]
    return found


def poison(layer: Layer) -> None:
    """Fills the whole cache with NaN, which no result may be touched by before it is overwritten."""
    for values in (False, True):
        layer.cache.memory(values)[:] = 0xFF  # in int8 the scales are NaN


def play(path: str) -> Play:
    def run(shape: Shape, sequences: list[Floats], chunk: int, threads: int, seed: int, poisoned: bool) -> list[Floats]:
        """All sequences through one cache, `chunk` tokens of each that has any left per step."""
        lengths = [len(rows) for rows in sequences]
        tables = tables_of(lengths, shape.block_size, seed)
        layer = Layer(path, shape, sum(-(-length // shape.block_size) for length in lengths))
        if poisoned:
            poison(layer)
        outs: list[list[Floats]] = [[] for _ in sequences]
        done = [0] * len(sequences)
        while any(d < n for d, n in zip(done, lengths, strict=True)):
            members = [i for i, n in enumerate(lengths) if done[i] < n]
            counts = [min(chunk, lengths[i] - done[i]) for i in members]
            starts = [done[i] for i in members]
            rows = np.concatenate([sequences[i][done[i] : done[i] + c] for i, c in zip(members, counts, strict=True)])
            out, _ = layer.step(rows, counts, starts, np.ascontiguousarray(tables[members]), threads)
            for i, part in zip(members, np.split(out, np.cumsum(counts)[:-1]), strict=True):
                outs[i].append(part)
                done[i] += len(part)
        return [np.concatenate(parts) for parts in outs]

    return run


def differing(run: Play, shape: Shape, full: bool = True) -> list[str]:
    """The ways of running in which some row has other bits than when its sequence runs alone, whole, on one thread."""
    sequences = [draw_rows(shape, length, seed) for seed, length in enumerate(LENGTHS)]
    alone = [run(shape, [rows], 10**6, 1, 0, False)[0] for rows in sequences]
    assert all(np.isfinite(out).all() for out in alone)
    ways = [(chunk, threads, seed) for chunk in (1, 7, 8, 48, 10**6) for threads in (1, 2, 3) for seed in (1,)]
    if not full:
        ways = [(1, 3, 1), (7, 2, 2), (48, 1, 3), (10**6, 3, 4)]
    found = []
    for chunk, threads, seed in ways:
        outs = run(shape, sequences, chunk, threads, seed, True)
        if any(a.tobytes() != b.tobytes() for a, b in zip(alone, outs, strict=True)):
            found.append(f"chunk {chunk}, threads {threads}")
    for chunk in (1, 7, 48):
        if run(shape, sequences[:1], chunk, 2, 5, True)[0].tobytes() != alone[0].tobytes():
            found.append(f"alone, chunk {chunk}")
    return found


@pytest.mark.parametrize(("path", "element"), cases("f32", "bf16", "f16", "i8"))
def test_rows_are_the_same_bits_however_they_are_run(path: str, element: str) -> None:
    assert differing(play(path), Shape(element=element, dim=32, rotated=32, norm="head")) == []


@pytest.mark.parametrize("path", [*PATHS, *EMULATED])
@pytest.mark.parametrize(
    "shape",
    [
        Shape(heads=2, kv_heads=1, dim=16, block_size=1, element="bf16"),
        Shape(heads=9, kv_heads=3, dim=24, block_size=3, element="i8"),
        Shape(heads=8, kv_heads=1, dim=40, block_size=8, element="f16"),
        Shape(heads=5, kv_heads=1, dim=13, block_size=16),
        Shape(heads=4, kv_heads=4, dim=32, block_size=32, window=40, softcap=3.0),
        Shape(heads=2, kv_heads=1, dim=32, window=70, sinks=True, element="bf16"),
        Shape(heads=5, kv_heads=1, dim=48, block_size=32, window=33, softcap=3.0, element="bf16"),
        Shape(heads=3, kv_heads=1, dim=13, block_size=6, element="bf16"),
    ],
)
def test_features_are_the_same_bits_however_they_are_run(path: str, shape: Shape) -> None:
    if path in EMULATED and shape.element != "bf16":
        pytest.skip("stands in for another path with bfloat16 only")
    assert differing(play(path), shape, full=False) == []


def pieced(q: Floats, keys: Floats, values: Floats, width: int) -> Floats:
    """One query over its context in float32, in pieces of `width` positions put together in order."""
    top, total, out = np.float32(-np.inf), np.float32(0), np.zeros(len(q), dtype=np.float32)
    for begin in range(0, len(keys), width):
        scores = keys[begin : begin + width] @ q
        peak = max(top, scores.max())
        weights = np.exp(scores - peak)
        keep = np.exp(top - peak)
        total = total * keep + weights.sum(dtype=np.float32)
        out = out * keep + weights @ values[begin : begin + width]
        top = peak
    return (out / total).astype(np.float32)


def variant(shape: Shape, sequences: list[Floats], chunk: int, threads: int, seed: int, poisoned: bool) -> list[Floats]:
    """What must not be: as many pieces as keep all threads busy, so the more sequences the wider each."""
    width = 16 * len(sequences)
    outs = []
    for rows in sequences:
        q, k, v = (rows[:, i * shape.dim : (i + 1) * shape.dim] for i in (0, shape.heads, shape.heads + shape.kv_heads))
        outs.append(np.stack([pieced(q[t], k[: t + 1], v[: t + 1], width) for t in range(len(rows))]))
    return outs


def test_pieces_chosen_by_the_batch_would_be_noticed() -> None:
    assert differing(variant, Shape(), full=False)


@pytest.mark.parametrize(("path", "element"), cases("bf16", "i8"))
def test_a_shared_prefix_changes_no_bits(path: str, element: str) -> None:
    """Sequences whose tables begin with the same blocks, some with more in common than others."""
    shape = Shape(element=element, dim=32, block_size=16)
    tree = {0: [], 1: [0], 2: [0], 3: [0, 1], 4: [0, 1], 5: [], 6: [0, 1, 3]}
    lengths = [200, 330, 260, 400, 340, 100, 440]
    shared = {1: 192, 2: 192, 3: 320, 4: 256, 6: 384}
    rows: list[Floats] = []
    for index, length in enumerate(lengths):
        own = draw_rows(shape, length, seed=index)
        if index in shared:
            own[: shared[index]] = rows[tree[index][-1]][: shared[index]]
        rows.append(own)
    tables = tables_of(lengths, 16, seed=3)
    for index, common in shared.items():
        tables[index, : common // 16] = tables[tree[index][-1], : common // 16]
    layer = Layer(path, shape, int(sum(-(-n // 16) for n in lengths)))
    poison(layer)
    tails = [1, 3, 1, 1, 2, 1, 1]
    for index, (length, tail) in enumerate(zip(lengths, tails, strict=True)):
        begin = shared.get(index, 0)
        layer.step(rows[index][begin : length - tail], [length - tail - begin], [begin], tables[index : index + 1])
    starts = [n - t for n, t in zip(lengths, tails, strict=True)]
    alone = [
        layer.step(own[start:], [len(own) - start], [start], tables[i : i + 1])[0]
        for i, (own, start) in enumerate(zip(rows, starts, strict=True))
    ]
    for order in ([0, 1, 2, 3, 4, 5, 6], [6, 2, 5, 0, 4, 3, 1], [3, 4], [0, 6, 2]):
        for threads in (1, 2, 3, 5):
            flat = np.concatenate([rows[i][starts[i] :] for i in order])
            counts = [tails[i] for i in order]
            out, _ = layer.step(flat, counts, [starts[i] for i in order], np.ascontiguousarray(tables[order]), threads)
            assert out.tobytes() == np.concatenate([alone[i] for i in order]).tobytes(), (order, threads)


@pytest.mark.parametrize("path", [*PATHS, *EMULATED])
def test_one_long_sequence_over_many_threads(path: str) -> None:
    shape = Shape(heads=3, kv_heads=1, dim=32, element="bf16")
    rows = draw_rows(shape, 2000)
    tables = tables_of([2000], 16, seed=1)
    layer = Layer(path, shape, 125)
    layer.step(rows[:1990], [1990], [0], tables)
    for begin, end in ((1990, 1991), (1991, 1993)):
        outs = [layer.step(rows[begin:end], [end - begin], [begin], tables, t)[0] for t in (1, 2, 3, 4, 7, 16, 64)]
        assert len({out.tobytes() for out in outs}) == 1 and np.isfinite(outs[0]).all()


@pytest.mark.parametrize(("path", "element"), cases("f32", "bf16", "i8"))
def test_a_spoilt_sequence_spoils_no_other(path: str, element: str) -> None:
    shape = Shape(element=element, dim=32)
    sequences = [draw_rows(shape, length, seed) for seed, length in enumerate([100, 40, 90])]
    clean = play(path)(shape, sequences, 8, 2, 1, False)
    sequences[1][:] = np.nan
    spoilt = play(path)(shape, sequences, 8, 2, 1, False)
    assert np.isnan(spoilt[1]).all()
    for index in (0, 2):
        assert spoilt[index].tobytes() == clean[index].tobytes()


SHAPES_IN_PAIRS = [
    Shape(element="bf16"),
    Shape(element="bf16", heads=14, kv_heads=1, dim=48, block_size=32, softcap=3.0),
    Shape(element="bf16", dim=7, block_size=3, sinks=True, window=45),
]


@pytest.mark.skipif("avx512_bf16" not in PATHS, reason="this processor has no AVX512-BF16")
@pytest.mark.parametrize("shape", SHAPES_IN_PAIRS)
@pytest.mark.parametrize("size", [1.0, 1e-19, 1e-38, 1e3])
def test_pairs_are_what_stands_in_for_them(shape: Shape, size: float) -> None:
    """Order, roundings, and what becomes of numbers too small for a full mantissa, in scores, weights and sums."""
    rows = draw_rows(shape, 200) * np.float32(size)
    rows[7] = 0
    found, expected = (
        play(path)(shape, [rows], 90, 1, 0, False)[0] for path in ("avx512_bf16", "emulated_avx512_bf16")
    )
    assert found.tobytes() == expected.tobytes() and np.isfinite(found).all()


@pytest.mark.parametrize("shape", SHAPES_IN_PAIRS[:2])
def test_tiles_take_what_sees_all_of_a_piece(shape: Shape) -> None:
    """Tiles round otherwise than vectors, so whether they were taken shows: for whole pieces, and never for parts."""
    rows = draw_rows(shape, 200)
    tiles, vectors = (
        play(path)(shape, [rows], 90, 1, 0, False)[0] for path in ("emulated_amx", "emulated_avx512_bf16")
    )
    same = (tiles == vectors).all(axis=1)
    assert same[:63].all() and not same[63:].any()
    np.testing.assert_allclose(tiles, vectors, rtol=0, atol=0.01)
