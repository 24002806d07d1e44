"""Native linear layers against the processor's limits and torch's own.

    python -m bench.native_linear [--path avx2] [--threads 1] [--repeats 5] [--formats bf16 i8] [--matrices down]
                                  [--rows 1 512] [--json PATH]

For the matrices of a 0.6B model (a layer's four and the head, which a step reads for few rows only): GB/s of weights
against a plain read of memory by one thread, and GFLOP/s against a loop of nothing but fused multiply-adds, times the
threads. `i8+` and `i4+` multiply with activations of 8 bits. What is multiplied in integers is counted as multiply-adds
are, and may exceed the loop, since integers are narrower. Limits, native kernels and torch take turns within each
round; figures are medians of rounds, ratios come with their least and greatest. Time is processor time with one
thread, so that other work on the machine counts little, and wall time with more.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from bench.recorded import add_json, save

from armillary.kernels import _native as native

# in, out; gate and up are one paired matrix.
SHAPES = {
    "qkv": (1024, 4096),
    "out": (2048, 1024),
    "gate, up": (1024, 6144),
    "down": (3072, 1024),
    "head": (1024, 151936),
}
# Element, group, 8-bit activations.
FORMATS = {
    "f32": (0, 0, False),
    "bf16": (1, 0, False),
    "f16": (2, 0, False),
    "i8": (3, 0, False),
    "i8+": (3, 0, True),
    "i4": (4, 128, False),
    "i4+": (4, 128, True),
}
SCALES = 1
"""Of groups: bfloat16, as they are chosen when a checkpoint is quantised while it is read."""
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
HEAD_ROWS = 32
"""Most rows that the head is measured with."""
OPERATIONS = 3e9
"""Of one measurement, about: as many copies of a matrix are multiplied."""
WORKING_SET = 96 << 20
"""Bytes of weights that are read in turn, so that no cache holds them."""

Spread = tuple[float, float, float]


@dataclass(frozen=True)
class Line:
    """Rates, and ratios of native to the limits and to torch as median, least, greatest."""

    matrix: str
    weights: str
    rows: int
    gigabytes_per_s: float
    gigaflops: float
    of_read: Spread
    of_multiply: Spread
    over_torch: Spread | None


def packed(path: str, rows: np.ndarray[Any, np.dtype[np.float32]], name: str, paired: bool) -> Iterator[Any]:
    """The matrix, and copies of it in memory of their own."""
    element, group, dynamic = FORMATS[name]
    shape = (*rows.shape, element, group, False, paired, dynamic, SCALES if group else 0)
    size = native.weight_bytes(path, *shape)
    first: np.ndarray[Any, np.dtype[np.uint8]] | None = None
    while True:
        memory = np.empty(size + 64, np.uint8)
        start = -memory.ctypes.data % 64
        memory = memory[start : start + size]
        weight = native.Weight(path, memory, *shape)
        if first is None:
            weight.pack(rows)
            first = memory
        else:
            memory[:] = first
        yield weight


def spread(values: list[float]) -> Spread:
    return statistics.median(values), min(values), max(values)


def over(a: list[float], b: list[float]) -> Spread:
    return spread([x / y for x, y in zip(a, b, strict=True)])


class Bench:
    def __init__(self, path: str, threads: int, repeats: int) -> None:
        self.path, self.threads, self.repeats = path, threads, repeats
        self.clock = time.process_time if threads == 1 else time.perf_counter
        self.memory = np.ones(WORKING_SET // 4, np.float32)

    def spent(self, run: Callable[[], object]) -> float:
        started = self.clock()
        run()
        return self.clock() - started

    def read(self) -> float:
        """GB/s of a plain read by one thread."""
        return self.memory.nbytes / 1e9 / self.spent(lambda: native.probe_read(self.path, self.memory))

    def multiply(self) -> float:
        """GFLOP/s of a loop of multiply-adds, times the threads."""
        rounds = 1_000_000
        started = self.clock()
        count = native.probe_multiply(self.path, rounds)
        return float(count) * 2 / 1e9 / (self.clock() - started) * self.threads

    def compare(
        self, matrix: str, name: str, rows: np.ndarray[Any, np.dtype[np.float32]], counts: list[int]
    ) -> Iterator[Line]:
        width, out = SHAPES[matrix]
        paired = matrix == "gate, up"
        element, group, dynamic = FORMATS[name]
        scales = SCALES if group else 0
        size = native.weight_bytes(self.path, out, width, element, group, False, paired, dynamic, scales)
        source = packed(self.path, rows, name, paired)
        weights = [next(source) for _ in range(-(-WORKING_SET // size))]
        plain: list[torch.Tensor] = []
        if name in DTYPES:
            one = torch.from_numpy(rows).to(DTYPES[name])
            plain = [one.clone() for _ in range(-(-WORKING_SET // (one.nbytes)))]
        for count in counts:
            if matrix != "head" or count <= HEAD_ROWS:
                yield self.line(matrix, name, count, weights, size, plain)

    def line(
        self, matrix: str, name: str, count: int, weights: list[Any], size: int, plain: list[torch.Tensor]
    ) -> Line:
        width, out = SHAPES[matrix]
        operations = 2.0 * count * width * out
        some = max(1, int(OPERATIONS / operations))
        used, theirs = weights[:some], plain[: max(1, some // 4)]
        x = np.random.default_rng(1).standard_normal((count, width), np.float32)
        y = np.empty((count, out // 2 if matrix == "gate, up" else out), np.float32)
        narrow = torch.from_numpy(x).to(DTYPES[name]) if plain else None

        def ours() -> None:
            native.linear_all(used, x, y, self.threads)

        def torchs() -> None:
            for weight in theirs:
                F.linear(narrow, weight)  # type: ignore[arg-type]  # there is a weight only where there are such rows

        ours()
        reads, multiplies, natives, torches = [], [], [], []
        for _ in range(self.repeats):
            reads.append(self.read())
            multiplies.append(self.multiply())
            natives.append(len(used) / self.spent(ours))
            if theirs:
                torches.append(len(theirs) / self.spent(torchs))
        bytes_per_s, flops = [x * size / 1e9 for x in natives], [x * operations / 1e9 for x in natives]
        return Line(
            matrix,
            name,
            count,
            statistics.median(bytes_per_s),
            statistics.median(flops),
            over(bytes_per_s, reads),
            over(flops, multiplies),
            over(natives, torches) if theirs else None,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default=native.paths()[-1], choices=native.paths())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--matrices", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 512])
    add_json(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options.path, options.threads, options.repeats)
    lines = []
    some = np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    print(f"{'matrix':<9} {'weights':<7} {'rows':>4} {'GB/s':>7} {'GFLOP/s':>7}  of read; of multiply-adds; over torch")
    with torch.inference_mode():
        for matrix in options.matrices:
            width, out = SHAPES[matrix]
            rows = np.resize(some, (out, width))
            for name in options.formats:
                for line in bench.compare(matrix, name, rows, options.rows):
                    lines.append(line)
                    ratios = [
                        f"{x[0]:.2f} ({x[1]:.2f} to {x[2]:.2f})"
                        for x in (line.of_read, line.of_multiply, line.over_torch)
                        if x
                    ]
                    rates = f"{line.gigabytes_per_s:>7.1f} {line.gigaflops:>7.1f}"
                    print(f"{matrix:<9} {name:<7} {line.rows:>4} {rates}  {'; '.join(ratios)}", flush=True)
    save(options.json, options.path, options.threads, {"lines": [asdict(line) for line in lines]})


if __name__ == "__main__":
    main()
