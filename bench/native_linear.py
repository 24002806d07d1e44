"""Native linear layers against the processor's limits and torch's own.

    python bench/native_linear.py [--path avx2] [--threads 1] [--repeats 5] [--formats bf16 i8] [--matrices down]
                                  [--rows 1 512] [--json PATH]

For the matrices of a 0.6B model (a layer's four and the head): up to 16 rows in GB/s of weights against what a
plain read of memory reaches, more rows in GFLOP/s against a loop of nothing but fused multiply-adds. `i8+` and `i4+`
multiply with activations of 8 bits; their operations are counted as those of the others. Limits (of one thread), native
kernels and torch take turns within each round; figures are medians of rounds, ratios come with their least and
greatest. Time is processor time with one thread, so that other work on the machine counts little, and wall time with
more.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

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
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
FEW_ROWS = 16
WORKING_SET = 96 << 20

Spread = tuple[float, float, float]


@dataclass(frozen=True)
class Line:
    """Rates in GB/s of weights or GFLOP/s; ratios of native to the limit and to torch as median, least, greatest."""

    matrix: str
    weights: str
    rows: int
    unit: str
    limit: float
    native: float
    torch: float | None
    of_limit: Spread
    over_torch: Spread | None


def packed(path: str, rows: np.ndarray[Any, np.dtype[np.float32]], name: str, paired: bool) -> tuple[Any, int]:
    element, group, dynamic = FORMATS[name]
    shape = (*rows.shape, element, group, False, paired, dynamic)
    size = native.weight_bytes(path, *shape)
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    weight = native.Weight(path, memory[start : start + size], *shape)
    weight.pack(rows)
    return weight, size


def spread(values: list[float]) -> Spread:
    return statistics.median(values), min(values), max(values)


class Bench:
    def __init__(self, path: str, threads: int, repeats: int) -> None:
        self.path, self.threads, self.repeats = path, threads, repeats
        self.clock = time.process_time if threads == 1 else time.perf_counter
        self.memory = np.ones(WORKING_SET // 4, np.float32)

    def rate(self, run: Callable[[], object], amount: float) -> float:
        started = self.clock()
        run()
        return amount / (self.clock() - started)

    def limit(self, few: bool) -> float:
        """What one thread reaches, however many the products are shared out over."""
        if few:
            return self.rate(lambda: native.probe_read(self.path, self.memory), self.memory.nbytes / 1e9)
        started = self.clock()
        count = native.probe_multiply(self.path, 2_000_000)
        return float(count) * 2 / 1e9 / (self.clock() - started)

    def compare(self, matrix: str, name: str, counts: list[int]) -> list[Line]:
        width, out = SHAPES[matrix]
        paired = matrix == "gate, up"
        rows = np.random.default_rng(0).standard_normal((out, width), np.float32)
        weight, size = packed(self.path, rows, name, paired)
        weights = [weight]
        while len(weights) * size < WORKING_SET:
            weights.append(packed(self.path, rows, name, paired)[0])
        theirs: list[torch.Tensor] = []
        if name in DTYPES:
            one = torch.from_numpy(rows).to(DTYPES[name])
            theirs = [one.clone() for _ in weights]
        return [self.line(matrix, name, count, weights, size, theirs, paired) for count in counts]

    def line(
        self, matrix: str, name: str, count: int, weights: list[Any], size: int, plain: list[torch.Tensor], paired: bool
    ) -> Line:
        width, out = SHAPES[matrix]
        few = count <= FEW_ROWS
        used = len(weights) if few else min(len(weights), max(1, 4096 // count))
        amount = used * (size if few else 2 * count * width * out) / 1e9
        x = np.random.default_rng(1).standard_normal((count, width), np.float32)
        y = np.empty((count, out // 2 if paired else out), np.float32)
        narrow = torch.from_numpy(x).to(DTYPES[name]) if plain else None

        def ours() -> None:
            native.linear_all(weights[:used], x, y, self.threads)

        def torchs() -> None:
            for weight in plain[:used]:
                F.linear(narrow, weight)  # type: ignore[arg-type]  # there is a weight only where there are such rows

        ours()
        limits, natives, torches = [], [], []
        for _ in range(self.repeats):
            limits.append(self.limit(few))
            natives.append(self.rate(ours, amount))
            if plain:
                torches.append(self.rate(torchs, amount))
        return Line(
            matrix,
            name,
            count,
            "GB/s" if few else "GFLOP/s",
            statistics.median(limits),
            statistics.median(natives),
            statistics.median(torches) if torches else None,
            spread([a / b for a, b in zip(natives, limits, strict=True)]),
            spread([a / b for a, b in zip(natives, torches, strict=True)]) if torches else None,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default=native.paths()[-1], choices=native.paths())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--matrices", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 512])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options.path, options.threads, options.repeats)
    lines = []
    print(f"{'matrix':<9} {'weights':<7} {'rows':>4} {'unit':<8} {'limit':>7} {'native':>7} {'torch':>7}  of both")
    with torch.inference_mode():
        for name in options.formats:
            for matrix in options.matrices:
                for line in bench.compare(matrix, name, options.rows):
                    lines.append(line)
                    theirs = f"{line.torch:>7.1f}" if line.torch else f"{'-':>7}"
                    ratios = [f"{x[0]:.2f} ({x[1]:.2f} to {x[2]:.2f})" for x in (line.of_limit, line.over_torch) if x]
                    print(
                        f"{matrix:<9} {name:<7} {line.rows:>4} {line.unit:<8} {line.limit:>7.1f} {line.native:>7.1f} "
                        f"{theirs}  {'; '.join(ratios)}",
                        flush=True,
                    )
    if options.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "path": options.path,
            "threads": options.threads,
            "torch": torch.__version__,
        }
        found = {"machine": machine, "lines": [asdict(line) for line in lines]}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
