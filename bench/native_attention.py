"""Native paged attention against the processor's limits, the torch path and torch's own attention.

    python bench/native_attention.py [--path avx2] [--threads 1] [--repeats 5] [--elements bf16 f32] [--json PATH]

For the shape of a 0.6B model (16 heads over 8 of keys, 128 wide, blocks of 16): decode in GB/s of keys and values
against what a plain read of memory reaches, and prefill in GFLOP/s against a loop of nothing but fused
multiply-adds. Limits, native kernels and torch take turns within each round; figures are medians of rounds, and the
ratios come with their least and greatest. Time is processor time with one thread, so that other work on the machine
counts little, and wall time with more.
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
from recorded import add_json, save
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


@dataclass(frozen=True)
class Line:
    """Rates in GB/s (decode) or GFLOP/s (prefill), and the ratios of native to the others."""

    work: str
    element: str
    unit: str
    limit: float
    native: float
    paged: float | None
    sdpa: float | None
    of_limit: tuple[float, float, float]
    over_paged: tuple[float, float, float] | None
    over_sdpa: tuple[float, float, float] | None


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
    decode = work.count == 1
    layers = max(1, WORKING_SET // work.read(element)) if decode else 1
    amount = layers * (work.read(element) if decode else work.operations) / 1e9

    def rate(run: Callable[[], object], size: float) -> float:
        started = clock()
        run()
        return size / (clock() - started)

    memory = np.ones(WORKING_SET // 4, dtype=np.float32)
    rounds = 20_000_000

    def limit() -> float:
        if not decode:
            return rate(lambda: native.probe_multiply(path, rounds), done * 2 / 1e9) * threads
        return rate(lambda: native.probe_read(path, memory), memory.nbytes / 1e9)

    done = native.probe_multiply(path, 1000) / 1000 * rounds
    runs = {"native": native_run(path, work, element, threads, layers)}
    if element != "i8":
        runs |= {"paged": paged_run(work, element, layers), "sdpa": sdpa_run(work, element, layers)}
    for run in runs.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in ("limit", *runs)}
    for _ in range(repeats):
        found["limit"].append(limit())
        for name, run in runs.items():
            found[name].append(rate(run, amount))

    def ratios(other: str) -> tuple[float, float, float] | None:
        if other not in found:
            return None
        each = [a / b for a, b in zip(found["native"], found[other], strict=True)]
        return statistics.median(each), min(each), max(each)

    middle = {name: statistics.median(values) for name, values in found.items()}
    return Line(
        work.name,
        element,
        "GB/s" if decode else "GFLOP/s",
        middle["limit"],
        middle["native"],
        middle.get("paged"),
        middle.get("sdpa"),
        cast(tuple[float, float, float], ratios("limit")),
        ratios("paged"),
        ratios("sdpa"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default=native.paths()[-1], choices=native.paths())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--elements", nargs="+", default=["bf16", "i8", "f32"], choices=list(ELEMENTS))
    add_json(parser, "native_attention")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = []
    print(
        f"{'work':<24} {'kv':<5} {'unit':<8} {'limit':>7} {'native':>7} {'paged':>7} {'sdpa':>7}  of limit, over each"
    )
    with torch.inference_mode():
        for element in options.elements:
            for work in (*DECODE, *PREFILL):
                line = compare(work, element, options.path, options.threads, options.repeats)
                lines.append(line)
                others = [f"{x:>7.1f}" if x else f"{'-':>7}" for x in (line.paged, line.sdpa)]
                gains = [f"{low:.2f} to {high:.2f}" for _, low, high in filter(None, (line.over_paged, line.over_sdpa))]
                print(
                    f"{line.work:<24} {element:<5} {line.unit:<8} {line.limit:>7.1f} {line.native:>7.1f} "
                    f"{' '.join(others)}  {line.of_limit[0]:.2f}; {'; '.join(gains)}",
                    flush=True,
                )
    save(options.json, options.path, options.threads, {"lines": [asdict(line) for line in lines]})


if __name__ == "__main__":
    main()
