"""FlashAttention and FlashAttention-2: attention by tiles that stay in the cache, against that through its scores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from armillary.kernels import native
from armillary.measure.claims import Claim, Finding, Trial
from armillary.measure.statistics import Spread, interleaved, ratios
from claims.products import needs_native, torch_alone

HEADS, DIM, BLOCK = 8, 64, 16
LENGTHS = (128, 256, 512, 1024, 2048)
LONG = LENGTHS[-1]
TOKENS, PIECE = 192, 64
"""Of a tile, where every head has keys of its own, and of what it is multiplied with at a time."""
ERROR, GROWTH, FASTER, OF_PEAK = 1e-5, 2.0, 2.0, 0.5

Floats = NDArray[np.float32]


class Naive:
    """Scores of all pairs, masked, their softmax, and the product with the values: each an array of its own."""

    def __init__(self, rows: Floats) -> None:
        q, k, v = torch.from_numpy(rows).view(len(rows), 3, HEADS, DIM).permute(1, 2, 0, 3).contiguous()
        self.q, self.k, self.v = q * DIM**-0.5, k, v
        self.hidden = torch.ones(len(rows), len(rows), dtype=torch.bool).triu(1)
        self.bytes = 0

    def __call__(self) -> Floats:
        scores = (self.q @ self.k.transpose(1, 2)).masked_fill_(self.hidden, -math.inf)
        weights = torch.softmax(scores, dim=-1)
        self.bytes = scores.nbytes + weights.nbytes
        found: Floats = (weights @ self.v).transpose(0, 1).reshape(len(self.hidden), -1).numpy()
        return found


class Tiled:
    """The native kernel as it serves, over blocks that hold the same keys and values."""

    def __init__(self, rows: Floats, path: str) -> None:
        length = len(rows)
        extension: Any = native.extension()
        self.rows = rows.copy()
        self.cache = extension.KvCache(path, -(-length // BLOCK), 0, HEADS, DIM, BLOCK)
        self.out = np.empty((length, HEADS * DIM), dtype=np.float32)
        order = np.random.default_rng(0).permutation(-(-length // BLOCK)).astype(np.int64)[None]
        self.step = (np.array([length]), np.array([0]), np.array([0]), order)
        self.cache.store(self.rows, HEADS, *self.step)

    def __call__(self) -> Floats:
        self.cache.attend(self.rows, self.out, HEADS, *self.step, DIM**-0.5)
        return self.out

    @property
    def bytes(self) -> int:
        return int(self.cache.workspace_bytes)


def exact(rows: Floats) -> NDArray[np.float64]:
    """The same in float64."""
    q, k, v = rows.reshape(len(rows), 3, HEADS, DIM).astype(np.float64).transpose(1, 2, 0, 3)
    scores = np.where(np.tri(len(rows), dtype=bool), q @ k.transpose(0, 2, 1) * DIM**-0.5, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found: NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True) @ v
    return found.transpose(1, 0, 2).reshape(len(rows), -1)


def traffic(length: int) -> tuple[int, int]:
    """Bytes that naive and tiled attention move between arrays, were no array to stay in a cache beyond a tile's own.

    Naive: queries, keys, values and results once; scores written, masked in place (read and written), read by the
    softmax, whose weights are written and read. Tiled: queries and results once, and for every tile the keys and values
    that it sees.
    """
    once = 4 * length * DIM * HEADS
    scores = 4 * length * length * HEADS
    seen = sum(-(-min(first + TOKENS, length) // PIECE) * PIECE for first in range(0, length, TOKENS))
    return 4 * once + 6 * scores, 2 * once + 2 * 4 * seen * DIM * HEADS


def seconds(run: Callable[[], object]) -> float:
    """Processor time of a call, of about a hundredth of a second or more."""
    count, start = 0, time.process_time()
    while (taken := time.process_time() - start) < 0.01:
        run()
        count += 1
    return taken / count


def measure(trial: Trial) -> Finding:
    with torch_alone():
        return _measure(trial, needs_native())


def _measure(trial: Trial, path: str) -> Finding:
    extension: Any = native.extension()
    faster: dict[int, Spread] = {}
    memory: dict[str, dict[int, int]] = {"naive": {}, "tiled": {}}
    errors: dict[str, list[float]] = {"naive": [], "tiled": []}
    of_peak = Spread((0.0,))
    for length in LENGTHS:
        rows = np.random.default_rng(trial.seed).normal(size=(length, 3 * HEADS * DIM)).astype(np.float32)
        kinds: dict[str, Naive | Tiled] = {"naive": Naive(rows), "tiled": Tiled(rows, path)}
        wanted = exact(rows)
        for name, kind in kinds.items():
            errors[name].append(float(np.abs(kind() - wanted).max()))
            memory[name][length] = kind.bytes
        rounds = extension.probe_multiply(path, 1_000) / 1_000
        timed: dict[str, Callable[[], object]] = {**kinds, "peak": partial(extension.probe_multiply, path, 500_000)}
        runs = {f"{name}, {length} tokens": partial(seconds, run) for name, run in timed.items()}
        found = dict(zip(timed, interleaved(runs, trial.repeats, trial.step).values(), strict=True))
        faster[length] = ratios(found["naive"], found["tiled"])
        visible = length * (length + 1) / 2 * HEADS * DIM * 2  # multiply-adds
        of_peak = Spread(
            tuple(
                visible / tiled / (rounds * 500_000 / peak)
                for tiled, peak in zip(found["tiled"], found["peak"], strict=True)
            )
        )
    crossover = next((n for n in LENGTHS if all(faster[m].median > 1 for m in LENGTHS if m >= n)), None)
    grown = memory["tiled"][LONG] / memory["tiled"][LONG // 2]
    naive, tiled = traffic(LONG)
    worst = {name: max(each) for name, each in errors.items()}
    return Finding(
        holds=(
            worst["tiled"] <= ERROR
            and grown <= GROWTH
            and faster[LONG].median >= FASTER
            and faster[LONG].low > 1.0
            and of_peak.median >= OF_PEAK
        ),
        result=(
            f"at {LONG} tokens {faster[LONG]:.2f} times as fast as through the scores, at {of_peak:.2f} of what the "
            f"processor multiplies at best, in {memory['tiled'][LONG] / 2**20:.2f} MiB of working memory against "
            f"{memory['naive'][LONG] / 2**20:.0f} MiB; faster from "
            + (f"{crossover} tokens on" if crossover else "no length on")
            + f"; off by at most {worst['tiled']:.1e}"
        ),
        figures={f"times as fast, {length} tokens": spread for length, spread in faster.items()}
        | {f"share of the multiply-adds that are possible, {LONG} tokens": of_peak}
        | {
            f"working memory, {name}, {length} tokens, MiB": Spread((memory[name][length] / 2**20,))
            for name in memory
            for length in LENGTHS
        }
        | {f"largest error, {name}": Spread((value,)) for name, value in worst.items()}
        | {f"bytes moved, naive over tiled, {LONG} tokens (counted)": Spread((naive / tiled,))},
        notes=[
            "Naive attention multiplies all pairs and hides half of them, as is usual; the kernel leaves out tiles "
            "that see nothing, as the second paper does: up to 2 of the ratio.",
            "Naive attention is torch's, in float32 and one thread like the kernel, so the ratio contains what torch's "
            "matrix products lack as well.",
            f"Bytes are counted from the algorithms, with tiles of {TOKENS} queries by {PIECE} keys, as if nothing but "
            "a tile stayed in a cache.",
            "The rule on memory was first written for memory that does not grow at all (at most 1.05 times), which is "
            "more than was published, and which the kernel did not meet: the plan of a step holds 24 bytes a token.",
        ],
    )


CLAIM = Claim(
    name="flashattention",
    title="FlashAttention, and FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning",
    venue="NeurIPS 2022 and ICLR 2024",
    published=(
        "Computing attention by tiles that stay in fast memory, with a softmax that goes along, gives the exact "
        "result in memory that grows linearly instead of quadratically, 2 to 4 times as fast as through stored scores "
        "and faster at all but short lengths; the second reaches 50 to 73 % of the processor's peak."
    ),
    compared=(
        f"Causal attention of one sequence, {HEADS} heads of {DIM}, float32, at {LENGTHS[0]} to {LONG} tokens: the "
        "native kernel over its paged cache against torch computing all scores, their softmax and the product with the "
        "values, by processor time of one thread; results against float64; memory besides inputs and results; the "
        "share of the multiply-adds that a loop of nothing else does."
    ),
    rule=(
        f"The tiled result is within {ERROR:g} of the exact one; from {LONG // 2} to {LONG} tokens the working memory "
        f"grows at most {GROWTH:g} times, as length does; at {LONG} the ratio of times has a median of at least "
        f"{FASTER:g} and is above 1 in every repeat, and the share of the peak has a median of at least {OF_PEAK:g}."
    ),
    measure=measure,
)
