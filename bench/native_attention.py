"""Native paged attention against the processor's limits, the torch path and torch's own attention.

    python -m bench.native_attention [--path avx2] [--threads 1] [--repeats 5] [--elements bf16 f32] [--json PATH]

For the shape of a 0.6B model (16 heads over 8 of keys, 128 wide, blocks of 16): the time of decoding and of
prefill, and what share of it the processor would need at best to read keys and values once (a plain read of
memory in the same run), and to do the products (a loop of nothing but fused multiply-adds). Work that needs
both, as decoding over a shared prefix does, is near its limit where the two shares add up to one; 8-bit keys
and values are multiplied as whole numbers, and those of bfloat16 in pairs where there are instructions for that,
which may be faster than that loop. Limits, native kernels and torch
take turns within each round; figures are medians of rounds, with their least and greatest. Time is processor
time with one thread, so that other work on the machine counts little, and wall time with more.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from bench.recorded import add_json, save
from torch import Tensor

from armillary.kernels import _native
from armillary.kernels.paged import Workspace, paged_attention
from armillary.models.spec import AttentionSpec
from armillary.runtime.attention import StepLayout

native: Any = _native  # its bindings for measuring are not in the stub

HEADS, KV_HEADS, DIM, BLOCK = 16, 8, 128, 16
ELEMENTS = {"f32": 0, "bf16": 1, "f16": 2, "i8": 3}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
WORKING_SET = 96 << 20
ROUNDS = 5_000_000


@dataclass(frozen=True)
class Work:
    """Sequences of one step: `count` new tokens each after `start` others, of which all share the first `shared`."""

    name: str
    sequences: int
    start: int
    count: int
    shared: int = 0

    @property
    def length(self) -> int:
        return self.start + self.count

    def read(self, element: str) -> int:
        """Bytes of keys and values that must be read once."""
        positions = self.sequences * (self.length - self.shared) + self.shared
        per_head = DIM + 4 if element == "i8" else DIM * DTYPES[element].itemsize
        return positions * KV_HEADS * 2 * per_head

    @property
    def operations(self) -> int:
        """Floating-point operations of the two products over visible positions."""
        seen = sum(range(self.start + 1, self.length + 1))
        return self.sequences * seen * HEADS * DIM * 4


DECODE = (
    Work("one stream", 1, 2047, 1),
    Work("sixteen streams", 16, 383, 1),
    Work("32 streams, 512 shared", 32, 575, 1, 512),
)
PREFILL = (
    Work("prompt of 2048", 1, 0, 2048),
    Work("chunk of 256 at 1792", 1, 1792, 256),
    Work("32 of 32 at 512 shared", 32, 512, 32, 512),
)


Ratio = tuple[float, float, float]
"""Median, least and greatest over the rounds."""


@dataclass(frozen=True)
class Line:
    """One kind of work: limits in GB/s and GFLOP/s, and how native compares."""

    work: str
    element: str
    read: float
    multiply: float
    milliseconds: float
    of_read: Ratio
    of_multiply: Ratio
    over_paged: Ratio | None
    over_sdpa: Ratio | None


def tables(work: Work) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Blocks in random order, those of the shared prefix the same in every table."""
    shared, each = work.shared // BLOCK, -(-work.length // BLOCK)
    order = np.random.default_rng(0).permutation(shared + work.sequences * (each - shared))
    own = order[shared:].reshape(work.sequences, -1)
    return np.concatenate([np.tile(order[:shared], (work.sequences, 1)), own], axis=1).astype(np.int64)


def native_run(path: str, work: Work, element: str, threads: int, layers: int) -> Callable[[], None]:
    table = tables(work)
    blocks = int(table.max()) + 1
    caches = [native.KvCache(path, blocks, ELEMENTS[element], KV_HEADS, DIM, BLOCK) for _ in range(layers)]
    for cache in caches:
        for values in (False, True):
            cache.memory(values)[:] = 0x3B  # some number near 0.003 in every element but int8, where it is 59
    rows = work.sequences * work.count
    q = np.random.default_rng(1).normal(size=(rows, HEADS * DIM)).astype(np.float32)
    out = np.empty_like(q)
    counts = np.full(work.sequences, work.count, dtype=np.int64)
    starts = np.full(work.sequences, work.start, dtype=np.int64)
    first = np.arange(work.sequences, dtype=np.int64) * work.count

    def run() -> None:
        for cache in caches:
            cache.attend(q, out, HEADS, counts, starts, first, table, DIM**-0.5, threads=threads)

    return run


def paged_run(work: Work, element: str, layers: int) -> Callable[[], None]:
    table = tables(work)
    dtype = DTYPES[element]
    shape = (int(table.max()) + 2, KV_HEADS, BLOCK, DIM)
    caches = [(torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)) for _ in range(layers)]
    entries = [
        SimpleNamespace(start=work.start, count=work.count, sequence=SimpleNamespace(blocks=row.tolist()))
        for row in table
    ]
    layout = StepLayout(cast(Any, entries), BLOCK, shape[0] - 1)
    groups = layout.groups(AttentionSpec(HEADS, KV_HEADS, DIM, DIM**-0.5))
    q = torch.randn(work.sequences * work.count, HEADS, DIM)
    out, workspace = torch.empty_like(q), Workspace()

    def run() -> None:
        for keys, values in caches:
            for group in groups:
                paged_attention(q, keys, values, group, out, DIM**-0.5, None, workspace)

    return run


def sdpa_run(work: Work, element: str, layers: int) -> Callable[[], None]:
    """torch's own attention over keys and values that lie in one piece, sequence by sequence."""
    dtype = DTYPES[element]
    shape = (work.sequences, KV_HEADS, work.length, DIM)
    caches = [(torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)) for _ in range(layers)]
    q = torch.randn(work.sequences, HEADS, work.count, DIM).to(dtype)
    hidden: Tensor | None = None
    if work.count > 1 and work.start:
        hidden = torch.ones(work.count, work.length, dtype=torch.bool).tril(work.start)
    causal = work.count > 1 and not work.start

    def run() -> None:
        for keys, values in caches:
            F.scaled_dot_product_attention(q, keys, values, attn_mask=hidden, is_causal=causal, enable_gqa=True)

    return run


def compare(work: Work, element: str, path: str, threads: int, repeats: int) -> Line:
    clock = time.process_time if threads == 1 else time.perf_counter
    layers = max(1, WORKING_SET // work.read(element)) if work.count == 1 else 1

    def seconds(run: Callable[[], object]) -> float:
        started = clock()
        run()
        return clock() - started

    memory = np.ones(WORKING_SET // 4, dtype=np.float32)
    done = native.probe_multiply(path, 1000) / 1000 * ROUNDS
    runs: dict[str, Callable[[], object]] = {
        "read": lambda: native.probe_read(path, memory),
        "multiply": lambda: native.probe_multiply(path, ROUNDS),
        "native": native_run(path, work, element, threads, layers),
    }
    if element != "i8":
        runs |= {"paged": paged_run(work, element, layers), "sdpa": sdpa_run(work, element, layers)}
    for run in runs.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            found[name].append(seconds(run))
    needed = {  # seconds, had they nothing else to do
        "read": [each * work.read(element) * layers / memory.nbytes for each in found["read"]],
        "multiply": [each * work.operations * layers / (done * 2 * threads) for each in found["multiply"]],
    }

    def ratio(over: list[float]) -> Ratio:
        each = [a / b for a, b in zip(over, found["native"], strict=True)]
        return statistics.median(each), min(each), max(each)

    return Line(
        work.name,
        element,
        memory.nbytes / statistics.median(found["read"]) / 1e9,
        done * 2 * threads / statistics.median(found["multiply"]) / 1e9,
        statistics.median(found["native"]) / layers * 1e3,
        ratio(needed["read"]),
        ratio(needed["multiply"]),
        ratio(found["paged"]) if "paged" in found else None,
        ratio(found["sdpa"]) if "sdpa" in found else None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default=native.paths()[-1], choices=native.paths())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--elements", nargs="+", default=["bf16", "i8", "f32"], choices=list(ELEMENTS))
    add_json(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = []
    print(f"{'work':<24} {'kv':<5} {'GB/s':>6} {'GFLOP/s':>7} {'ms':>8}  of read, of multiply; over paged, sdpa")
    with torch.inference_mode():
        for element in options.elements:
            for work in (*DECODE, *PREFILL):
                line = compare(work, element, options.path, options.threads, options.repeats)
                lines.append(line)
                shares = [f"{x[0]:.2f} ({x[1]:.2f} to {x[2]:.2f})" for x in (line.of_read, line.of_multiply)]
                gains = [f"{x[0]:.1f}" for x in (line.over_paged, line.over_sdpa) if x]
                print(
                    f"{line.work:<24} {element:<5} {line.read:>6.1f} {line.multiply:>7.1f} {line.milliseconds:>8.3f}  "
                    f"{', '.join(shares)}; {', '.join(gains) or '-'}",
                    flush=True,
                )
    save(options.json, options.path, options.threads, {"lines": [asdict(line) for line in lines]})


if __name__ == "__main__":
    main()
