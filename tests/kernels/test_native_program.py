"""The program of a whole decoder: shapes that fit no tile, engines side by side, refusals of what would leave memory.

What it computes is compared with transformers by `tests/equality`; here its bits are compared with its own, so that
all of it also runs under the sanitisers.
"""

from __future__ import annotations

import mmap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from packed_matrices import aligned, native, packed, same_bits

PATHS: list[str] = native.paths()
HEADS, KV_HEADS, DIM, WIDE, VOCAB, BLOCK = 6, 2, 10, 27, 37, 5
HIDDEN = 43
FORMATS = ("f32", "bf16", "i8")


@dataclass
class Tiny:
    """A decoder of two layers and odd sizes with random weights; the second is a mixture where experts are given."""

    path: str
    element: str = "f32"
    experts: int = 0
    dynamic: bool = False
    changes: dict[str, Any] = field(default_factory=dict)
    model: Any = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = np.random.default_rng(3)
        head = self.matrix(VOCAB, HIDDEN)
        self.model = native.Model(self.path, HIDDEN, VOCAB, 1e-6, False, self.vector(HIDDEN), head, None, 1.0, 30.0)
        self.model.add_rope(np.linspace(1, 0.1, DIM // 2, dtype=np.float32), 1.0)
        self.model.add_layer(self.layer(0))
        self.model.add_layer(self.layer(self.experts))

    def vector(self, size: int) -> np.ndarray:
        return self.numbers.uniform(0.5, 1.5, size).astype(np.float32)

    def matrix(self, out: int, width: int, paired: bool = False) -> Any:
        rows = self.numbers.normal(0, width**-0.5, (out, width)).astype(np.float32)
        return packed(self.path, rows, self.element, paired=paired, int8_activations=self.dynamic).weight

    def layer(self, experts: int) -> dict[str, Any]:
        parts = {
            "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "scale": DIM**-0.5, "window": 0, "softcap": 0.0,
            "rope": 0, "full_qk_norm": False, "activation": 0, "intermediate": WIDE,
            "attention_norm": self.vector(HIDDEN), "mlp_norm": self.vector(HIDDEN),
            "q_norm": self.vector(DIM), "k_norm": self.vector(DIM),
            "qkv": self.matrix((HEADS + 2 * KV_HEADS) * DIM, HIDDEN), "out": self.matrix(HIDDEN, HEADS * DIM),
        }  # fmt: skip
        if experts:
            parts |= {
                "router": self.matrix(experts, HIDDEN), "per_token": 2, "renormalize": True,
                "gate_up": [self.matrix(2 * WIDE, HIDDEN, True) for _ in range(experts)],
                "down": [self.matrix(HIDDEN, WIDE) for _ in range(experts)],
            }  # fmt: skip
        else:
            parts |= {"gate_up": self.matrix(2 * WIDE, HIDDEN, True), "down": self.matrix(HIDDEN, WIDE)}
        return parts | self.changes

    def engine(self, threads: int = 1, blocks: int = 12, adapt: bool = False, layers: int = 2) -> Engine:
        return Engine(self, threads, blocks, adapt, layers)


class Engine:
    """A program with a store of its own."""

    def __init__(self, tiny: Tiny, threads: int, blocks: int, adapt: bool, layers: int) -> None:
        self.program = native.Program(tiny.model, threads, adapt)
        self.store = native.KvStore(tiny.path, blocks)
        size = native.KvStore.block_bytes(tiny.path, 0, KV_HEADS, DIM, BLOCK) * blocks
        for _ in range(layers):
            self.store.add_layer(aligned(size), aligned(size), 0, KV_HEADS, DIM, BLOCK)

    def step(self, tokens: list[int], counts: list[int], starts: list[int], tables: Any) -> np.ndarray:
        """Hidden states [tokens, HIDDEN]."""
        out = np.full((len(tokens), HIDDEN), np.nan, np.float32)
        self.program.hidden(self.store, tokens, counts, starts, tables, out)
        return out

    def scores(self, hidden: np.ndarray) -> np.ndarray:
        out = np.full((len(hidden), VOCAB), np.nan, np.float32)
        self.program.logits(hidden, range(len(hidden)), out)
        return out


TOKENS = [int(token) for token in np.random.default_rng(1).integers(0, VOCAB, 23)]
TABLE = [[4, 0, 7, 2, 9]]


def play(engine: Engine, chunk: int = 23) -> np.ndarray:
    """The tokens in chunks, and their scores."""
    outs = [engine.step(TOKENS[i : i + chunk], [len(TOKENS[i : i + chunk])], [i], TABLE) for i in range(0, 23, chunk)]
    hidden = np.concatenate(outs)
    return np.concatenate([hidden, engine.scores(hidden)], 1)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("experts", [0, 5])
@pytest.mark.parametrize("element", FORMATS)
def test_one_token_at_a_time_and_any_threads_give_the_same_bits(path: str, element: str, experts: int) -> None:
    for dynamic in {False, element == "i8"}:
        tiny = Tiny(path, element, experts, dynamic)
        whole = play(tiny.engine())
        assert np.isfinite(whole).all()
        for threads, chunk in ((1, 1), (2, 23), (3, 4)):
            assert same_bits(play(tiny.engine(threads), chunk), whole)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("element", FORMATS)
def test_a_mixture_has_the_bits_of_each_token_alone_through_every_expert(path: str, element: str) -> None:
    """The dense reference: all experts for one token at a time, and the terms of its own added from the best on."""
    tiny, experts, count = Tiny(path, element, dynamic=element == "i8"), 5, 3
    parts, norm, head = tiny.layer(experts) | {"per_token": count}, tiny.vector(HIDDEN), tiny.matrix(VOCAB, HIDDEN)
    parts["out"] = packed(path, np.zeros((HIDDEN, HEADS * DIM), np.float32)).weight  # attention adds nothing
    tokens = np.random.default_rng(7).integers(0, VOCAB, 50)
    x = np.empty((len(tokens), HIDDEN), np.float32)
    head.rows(tokens, x)
    ranked, numbered = np.empty_like(x), np.empty_like(x)
    times = np.zeros(experts, int)
    for row in range(len(tokens)):
        alone, normed = x[row : row + 1], np.empty((1, HIDDEN), np.float32)
        native.rms_norm(path, alone, parts["mlp_norm"], 1e-6, False, normed)
        scores, terms = np.empty((1, experts), np.float32), np.empty((experts, HIDDEN), np.float32)
        native.linear(parts["router"], normed, scores)
        for expert in range(experts):
            native.linear(parts["gate_up"][expert], normed, inner := np.empty((1, WIDE), np.float32))
            native.linear(parts["down"][expert], inner, terms[expert : expert + 1])
        weights, chosen = np.empty((1, count), np.float32), np.empty((1, count), np.int64)
        native.route(path, scores, True, weights, chosen)
        times[chosen[0]] += 1
        by_number = np.argsort(chosen[0])
        for order, into in ((np.arange(count), ranked), (by_number, numbered)):
            places, shares = chosen[:, order].copy(), weights[0, order].copy()
            native.combine(path, terms, places, shares, alone, into[row : row + 1])
        native.rms_norm(path, ranked[row : row + 1], norm, 1e-6, False, ranked[row : row + 1])
        native.rms_norm(path, numbered[row : row + 1], norm, 1e-6, False, numbered[row : row + 1])
    assert times.min() > 1, "every expert's matrix is multiplied with several rows at once"
    tiny.model = native.Model(path, HIDDEN, VOCAB, 1e-6, False, norm, head, None, 1.0, 0.0)
    tiny.model.add_rope(np.linspace(1, 0.1, DIM // 2, dtype=np.float32), 1.0)
    tiny.model.add_layer(parts)
    for threads in (1, 2, 3):
        engine = tiny.engine(threads, layers=1)
        grouped = engine.step(tokens.tolist(), [len(tokens)], [0], [list(range(10))])
        assert same_bits(grouped, ranked)
    assert not same_bits(numbered, ranked), "another order of the same sum has other bits, so the comparison can fail"


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_steps_on_any_part_of_the_threads_give_the_same_bits(threads: int) -> None:
    """Also in turn with work for all of them: who sat out a step must not take the next one's for its own."""
    tiny = Tiny(PATHS[-1], "bf16")
    whole = play(tiny.engine())
    engine = tiny.engine(threads=threads, adapt=True)
    sampler = native.Sampler(PATHS[-1], engine.program.team)
    scores = np.random.default_rng(2).normal(size=(8, 40_000)).astype(np.float32)
    best, rows = scores.argmax(1), np.arange(8)
    for turn in range(300):
        assert same_bits(play(engine, (1, 4, 23)[turn % 3]), whole)
        chosen = np.empty(8, np.int64)
        sampler.choose(scores, rows, np.tile([0.0, 0, 1, 0, 0], (8, 1)), chosen)
        assert (chosen == best).all()


def test_tables_may_be_of_any_lengths_and_longer_than_what_is_stored() -> None:
    tokens, counts, starts = TOKENS[:8], [6, 2], [0, 0]
    even = Tiny(PATHS[-1]).engine().step(tokens, counts, starts, [[5, 1], [7, 0]])
    for first, second in (([5, 1], [7]), ([5, 1, 8, 3, 10], [7, 4, 4]), ([5, 1], [7, 2, 9, 3, 0])):
        assert same_bits(Tiny(PATHS[-1]).engine().step(tokens, counts, starts, [first, second]), even)


def test_no_rows_are_no_work() -> None:
    engine = Tiny(PATHS[-1]).engine()
    assert engine.step([], [], [], []).shape == (0, HIDDEN)
    assert engine.scores(np.zeros((0, HIDDEN), np.float32)).shape == (0, VOCAB)


@pytest.mark.parametrize("path", PATHS)
def test_engines_in_threads_share_nothing(path: str) -> None:
    """Two programs of one model, and two callers of one program, give what each gives alone."""
    tiny = Tiny(path, "bf16", 3)
    alone = play(tiny.engine())
    engines = [tiny.engine(threads) for threads in (1, 2, 1, 2)]
    shared = tiny.engine(2)
    hidden = alone[:, :HIDDEN].copy()
    with ThreadPoolExecutor(6) as pool:
        played = [pool.submit(play, engine, chunk) for engine, chunk in zip(engines, (1, 2, 3, 23), strict=True)]
        scored = [pool.submit(shared.scores, hidden) for _ in range(6)]
        assert all(same_bits(found.result(), alone) for found in played)
        assert all(same_bits(found.result(), alone[:, HIDDEN:].copy()) for found in scored)


@pytest.mark.parametrize("path", PATHS)
def test_the_last_of_a_million_blocks(path: str) -> None:
    """Places beyond 4 GiB, of which only the pages that are written exist."""
    blocks, heads, dim, size = 1_000_000, 2, 64, 16
    each = native.KvStore.block_bytes(path, 0, heads, dim, size)
    assert each * blocks > 1 << 32
    cache = [np.frombuffer(mmap.mmap(-1, each * blocks), np.uint8) for _ in range(2)]
    store = native.KvStore(path, blocks)
    store.add_layer(*cache, 0, heads, dim, size)
    for block in (0, blocks // 2, blocks - 1):
        cache[0][each * block : each * (block + 1)].view(np.float32)[:] = 1.0
        keys, values = (np.full((heads, size, dim), 7, np.float32) for _ in range(2))
        store.read(0, block, keys, values)
        assert (keys == 1).all() and (values == 0).all()
        store.clear(np.array([block]), 0, size)
        store.read(0, block, keys, values)
        assert (keys == 0).all()


def test_a_million_outputs() -> None:
    path = PATHS[-1]
    rows = np.random.default_rng(0).standard_normal((1_000_003, 3)).astype(np.float32)
    matrix = packed(path, rows, "bf16")
    x = np.array([[1, 0, 0], [0.5, -2, 1]], np.float32)
    found = matrix(x, threads=2)
    values = np.empty((3, 3), np.float32)
    last = np.array([1_000_002, 0, 524_288])
    matrix.weight.rows(last, values)
    np.testing.assert_allclose(found[:, last], x @ values.T, rtol=1e-6, atol=1e-6)
    places, peaks = np.empty(2, np.int64), np.empty(2, np.float32)
    native.argmax(path, found, peaks, places)
    assert places.tolist() == found.argmax(1).tolist()
    tokens = np.empty(2, np.int64)
    draws = np.array([[1.0, 40, 0.9, 0.0, 0.3], [1.0, 0, 0.9, 0.0, 0.999]])
    native.Sampler(path, native.Team(1)).choose(found, np.arange(2), draws, tokens)
    assert found[0, tokens[0]] >= np.sort(found[0])[-40] and (tokens >= 0).all()


@pytest.mark.parametrize("path", PATHS)
def test_weights_that_are_not_finite_spoil_their_own_outputs(path: str) -> None:
    rows = np.random.default_rng(0).standard_normal((70, 64)).astype(np.float32)
    spoilt = rows.copy()
    spoilt[3, 5], spoilt[40, 63], spoilt[69, 0] = np.nan, np.inf, -np.inf
    x = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    for element, options in (("i8", {}), ("i4", {"group": 32}), ("i4", {"group": 32, "zero_points": True})):
        for dynamic in (False, True):
            clean, found = (packed(path, w, element, int8_activations=dynamic, **options)(x) for w in (rows, spoilt))
            bad = np.zeros(70, bool)
            bad[[3, 40, 69]] = True
            assert not np.isfinite(found[:, bad]).any()
            assert same_bits(found[:, ~bad].copy(), clean[:, ~bad].copy())


def test_steps_that_would_leave_memory_are_refused() -> None:
    engine = Tiny(PATHS[-1]).engine()
    good = ([1, 2], [2], [0], [[3]])
    assert np.isfinite(engine.step(*good)).all()
    for at, wrong, words in (
        (0, [1, VOCAB], "tokens must be from 0 to 36, given 37"), (0, [-1, 2], "tokens must be"), (0, [1], "must"),
        (1, [3], "must"), (1, [0], "must have rows"), (1, [2**62], "must"), (2, [-1], "from position 0 on"),
        (2, [4], "a block for every position"), (2, [2**62], "must"),
        (3, [[12]], "blocks must be from 0 to 11, given 12"),
        (3, [[-1]], "blocks must be"), (3, [], "one entry a sequence"), (3, [[3], [4]], "one entry a sequence"),
    ):  # fmt: skip
        given: list[Any] = list(good)
        given[at] = wrong
        with pytest.raises(ValueError, match=words):
            engine.step(*given)
    states = np.zeros((2, HIDDEN), np.float32)
    for which, size in (([2], VOCAB), ([-1], VOCAB), ([0], VOCAB - 1)):
        with pytest.raises(ValueError, match="must be"):
            engine.program.logits(states, which, np.zeros(size, np.float32))
    table = np.array([3, 12])
    for first, count, words in (
        (0, 3, "blocks must be"),
        (-1, 1, "within"),
        (0, 11, "within"),
        (2**62, 2**62, "within"),
    ):
        with pytest.raises(ValueError, match=words):
            engine.store.clear(table if "blocks" in words else table[:1], first, count)
    for layer, block in ((2, 0), (-1, 0), (0, 12), (0, -1)):
        with pytest.raises(ValueError, match="those of the store"):
            engine.store.read(layer, block, states, states)


def test_results_are_never_written_to_a_copy() -> None:
    """Memory of another type or order would be converted, and what was written to the copy would be lost."""
    engine = Tiny(PATHS[-1]).engine()
    for out in (np.zeros((1, HIDDEN)), np.zeros((HIDDEN, 2), np.float32).T[:1, ::-1]):
        with pytest.raises(TypeError):
            engine.program.hidden(engine.store, [1], [1], [0], [[0]], out)
    with pytest.raises(TypeError):
        engine.program.logits(np.zeros((1, HIDDEN), np.float32), [0], np.zeros((1, VOCAB)))
    matrix = packed(PATHS[-1], np.ones((4, 4), np.float32)).weight
    x = np.ones((2, 4), np.float32)
    with pytest.raises(TypeError):
        native.linear(matrix, x, np.zeros((2, 4)))
    with pytest.raises(ValueError, match="rows that do not overlap"):
        native.linear(matrix, x, np.lib.stride_tricks.as_strided(np.zeros(8, np.float32), (2, 4), (4, 4)))
    size = native.weight_bytes(PATHS[-1], 4, 4, 0)
    with pytest.raises(TypeError):
        native.Weight(PATHS[-1], aligned(2 * size)[::2], 4, 4, 0)
    with pytest.raises(TypeError):
        native.KvStore(PATHS[-1], 1).add_layer(aligned(1 << 16)[::2], aligned(1 << 16), 0, KV_HEADS, DIM, BLOCK)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 5}, "multiple of kv_heads"), ({"heads": 0}, "multiple"), ({"kv_heads": 0}, "kv_heads must be"),
        ({"head_dim": 513}, "head_dim must be from 1 to 512"), ({"window": -1}, "window must be at least 0"),
        ({"rope": 1}, "rope must be one"), ({"rope": -1}, "rope must be one"), ({"activation": 4}, "activation must"),
        ({"intermediate": 3}, "gate_up must be"),
        ({"q_norm": np.ones(3, np.float32)}, "q_norm must have 10 numbers, given 3"),
        ({"mlp_norm": np.ones(HIDDEN)}, "mlp_norm must be float32 and contiguous"),
        ({"mlp_norm": np.ones(2 * HIDDEN, np.float32)[::2]}, "mlp_norm must be float32 and contiguous"),
    ],
)  # fmt: skip
def test_layers_that_do_not_fit_are_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Tiny(PATHS[-1], changes=changes)


def test_matrices_and_stores_that_do_not_fit_are_refused_by_name() -> None:
    path = PATHS[-1]
    tiny = Tiny(path)
    layer = tiny.layer(3)
    for name, wrong, words in (
        ("down", [tiny.matrix(HIDDEN, WIDE)] * 2, "gate_up and down each"), ("per_token", 4, "per_token must be"),
        ("gate_up", [tiny.matrix(2 * WIDE, HIDDEN)] * 3, "gate_up must be paired"),
        ("out", tiny.matrix(HIDDEN + 1, HEADS * DIM, True), "out must not be paired"),
        ("down", [*layer["down"][:2], packed(path, np.ones((HIDDEN, WIDE), np.float32), "i8").weight], "of one format"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            tiny.model.add_layer(layer | {name: wrong})
    store = native.KvStore(path, 4)
    size = native.KvStore.block_bytes(path, 0, KV_HEADS, DIM, BLOCK) * 4
    wide = native.KvStore.block_bytes(path, 0, 2 * KV_HEADS, DIM, BLOCK) * 4
    with pytest.raises(ValueError, match="hold all blocks"):
        store.add_layer(aligned(size), aligned(size - 1), 0, KV_HEADS, DIM, BLOCK)
    with pytest.raises(ValueError, match="element must be"):
        store.add_layer(aligned(size), aligned(size), 4, KV_HEADS, DIM, BLOCK)
    store.add_layer(aligned(wide), aligned(wide), 0, 2 * KV_HEADS, DIM, BLOCK)
    with pytest.raises(ValueError, match="one block_size"):
        store.add_layer(aligned(wide), aligned(wide), 0, KV_HEADS, DIM, BLOCK - 1)
    program, out = native.Program(Tiny(path).model, 1), np.zeros((1, HIDDEN), np.float32)
    arguments = ([1], [1], [0], [[1]], out)
    with pytest.raises(ValueError, match="as many layers"):
        program.hidden(store, *arguments)
    store.add_layer(aligned(wide), aligned(wide), 0, 2 * KV_HEADS, DIM, BLOCK)
    with pytest.raises(ValueError, match="heads of the model's layers"):
        program.hidden(store, *arguments)
    for threads in (0, -1, 100_000):
        with pytest.raises(ValueError, match="threads must be from 1 to 1024"):
            native.Program(tiny.model, threads)
    for blocks in (0, -1, 2**40):
        with pytest.raises(ValueError, match="blocks must be positive"):
            native.KvStore(path, blocks)
    with pytest.raises(TypeError):
        native.Sampler(path, None)
