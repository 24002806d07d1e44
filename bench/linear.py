"""Matrix products with bfloat16 weights, and with float32 weights reordered, against torch's own.

    python -m bench.linear [--threads 1] [--repeats 5] [--json PATH]

For shapes of a 0.6B model and for several numbers of rows: processor milliseconds of one product through the
table of operations and through torch.nn.functional.linear, and their ratio with its spread over rounds. Weights are
many enough not to sit in the cache. Runs of the two alternate; processor time, so that other work on
the machine counts little; one thread unless told otherwise, since processor time of waiting threads means nothing.
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

import torch
import torch.nn.functional as F
from torch import Tensor

from armillary.kernels.blocked import blocked
from armillary.kernels.narrow import lacks_arithmetic
from armillary.kernels.table import ops

SHAPES = ((1024, 3072), (1024, 151936))
ROWS = (1, 4, 16, 64, 512)
WORKING_SET = 64 << 20


@dataclass(frozen=True)
class Line:
    """One comparison. Milliseconds are medians; the ratio is torch's time over ours, median, least and greatest."""

    weights: str
    width: int
    out: int
    rows: int
    torch_ms: float
    ours_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


def seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def _reordered(weight: Tensor) -> Tensor:
    ready = blocked(weight)
    if ready is None:
        raise SystemExit("weights are not reordered here: this machine would gain nothing")
    return ready


def compare(kind: str, width: int, out: int, rows: int, repeats: int) -> Line:
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    count = max(1, WORKING_SET // (width * out * dtype.itemsize))
    plain = [torch.randn(out, width).to(dtype) for _ in range(count)]
    ready = [_reordered(weight) for weight in plain] if kind == "float32 reordered" else plain
    x = torch.randn(rows, width)
    narrow = x.to(dtype)

    def ours() -> list[Tensor]:
        return [ops.linear(x, weight, None) for weight in ready]

    def theirs() -> list[Tensor]:
        return [F.linear(narrow, weight) for weight in plain]

    ours(), theirs()
    pairs = [(seconds(theirs) / count, seconds(ours) / count) for _ in range(repeats)]
    ratios = [theirs / ours for theirs, ours in pairs]
    return Line(
        kind,
        width,
        out,
        rows,
        statistics.median(pair[0] for pair in pairs) * 1e3,
        statistics.median(pair[1] for pair in pairs) * 1e3,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kinds = ["bfloat16"]
    if blocked(torch.zeros(8, 8)) is not None:
        kinds.append("float32 reordered")
    lines = []
    print(f"{'weights':<18} {'in':>5} {'out':>7} {'rows':>5} {'torch ms':>9} {'ours ms':>9}  torch / ours")
    with torch.inference_mode():
        for kind in kinds:
            for width, out in SHAPES:
                for rows in options.rows:
                    line = compare(kind, width, out, rows, options.repeats)
                    lines.append(line)
                    print(
                        f"{kind:<18} {width:>5} {out:>7} {rows:>5} {line.torch_ms:>9.2f} {line.ours_ms:>9.2f}  "
                        f"{line.ratio:.2f} ({line.ratio_low:.2f} to {line.ratio_high:.2f})",
                        flush=True,
                    )
    if options.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "threads": options.threads,
            "torch": torch.__version__,
            "bfloat16 widened": lacks_arithmetic(torch.bfloat16),
        }
        found = {"machine": machine, "lines": [asdict(line) for line in lines]}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
