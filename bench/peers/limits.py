"""What the machine could do at most: memory and multipliers as measured beside each run, and what a workload needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

from .environments import BUILD, Unavailable
from .shapes import Shape
from .workloads import Workload

SOURCE = Path(__file__).with_name("limits.cpp")
MEBIBYTES = 1024
"""Far more than caches hold."""

WEIGHT_BYTES = {"bf16": 2.0, "int8": 1.0, "int4": 0.5}
HEAD_BYTES = {"bf16": 2.0, "int8": 1.0, "int4": 1.0}
"""Of embedding and head, which stay in 8 bits at 4. Scales of groups are left out: they could be larger groups."""
KV_BYTES = 2.0


@dataclass(frozen=True)
class Limits:
    """Bytes read and operations (two a multiply-add) per second, of all threads together.

    Attributes:
        bf16: with products of bfloat16 where the processor has them, else of float32.
        int8: likewise.
    """

    read: float
    float32: float
    bf16: float
    int8: float

    def multiply(self, precision: str) -> float:
        """What the products of a matrix in `precision` run at; those of attention run at that of bfloat16."""
        return self.bf16 if precision == "bf16" else self.int8

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def measure(threads: int, seconds: float = 0.15, folder: Path = BUILD) -> Limits:
    """Measure now; takes some six times `seconds`.

    Raises Unavailable: without a C++ compiler.
    """
    program = folder / "limits"
    if not program.exists() or program.stat().st_mtime < SOURCE.stat().st_mtime:
        compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            raise Unavailable("no C++ compiler")
        folder.mkdir(parents=True, exist_ok=True)
        options = ["-std=c++17", "-O3", "-march=native", "-pthread"]
        built = subprocess.run([compiler, *options, str(SOURCE), "-o", str(program)], capture_output=True, text=True)
        if built.returncode:
            raise Unavailable(f"{SOURCE.name} does not compile: {built.stderr[-200:]}")
    command = [str(program), str(threads), str(MEBIBYTES), str(seconds)]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise Unavailable(f"the machine cannot be measured: {found.stderr.strip()[-200:]} ({found.returncode})")
    return Limits(**json.loads(found.stdout))


def fastest(shape: Shape, precision: str, workload: Workload, limits: Limits) -> float:
    """Tokens per second, counted as the workload counts them, that no engine of this precision can exceed by much.

    Steps as an ideal engine would take them: all that can run does; a step takes the longer of reading (weights once,
    keys and values of 16 bits once, those of a shared prefix once for all) and multiplying; nothing else takes time.
    """
    waiting = deque(workload.requests)
    running: list[tuple[int, int]] = []  # positions, tokens still to come
    seconds = 0.0
    computed = 0  # of the shared prefix
    while waiting or running:
        prompt = scored = 0
        positions = [known for known, _ in running]
        first_only = not running
        while waiting and len(running) < workload.running:
            request = waiting.popleft()
            length = len(request.prompt)
            prompt += length - computed
            scored += _visible(computed, length)
            computed = workload.shared
            running.append((length, request.output))
        operations = 2.0 * shape.layers * shape.layer_weights * (len(positions) + prompt)
        head = 2.0 * shape.hidden * shape.vocab * len(running)
        attention = 4.0 * shape.heads * shape.head_dim * shape.layers * (sum(positions) + scored)
        multiplying = (operations + head) / limits.multiply(precision) + attention / limits.bf16
        seen = sum(known - workload.shared for known in positions) + workload.shared * bool(positions)
        read = shape.layers * shape.layer_weights * WEIGHT_BYTES[precision]
        read += shape.hidden * shape.vocab * HEAD_BYTES[precision]
        read += 2.0 * shape.layers * shape.kv_heads * shape.head_dim * KV_BYTES * seen
        if not (workload.unit == "decode" and first_only):
            seconds += max(multiplying, read / limits.read)
        running = [(known + 1, left - 1) for known, left in running if left > 1]
    return workload.tokens / seconds


def _visible(start: int, end: int) -> int:
    """Pairs of a query and a key that causal attention multiplies, for queries from `start` to `end`."""
    return (end * (end + 1) - start * (start + 1)) // 2
