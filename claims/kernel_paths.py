"""Hardware acceleration: what each path of the native kernels reaches of what its instructions allow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from armillary.kernels import native
from armillary.measure.claims import Claim, Finding, Trial
from armillary.measure.statistics import Spread, interleaved, ratios
from claims.products import FORMATS, OUT, WIDTH, Floats, Product, matrix_of, needs_native, seconds, timed

MANY = 512
READ, MULTIPLY, FASTER = 0.6, 0.6, 1.5
ROUNDS = 300_000
WORKING_SET = 96 << 20
"""Bytes of matrices that are read in turn at one row, so that no cache holds them all."""

PAIRS, QUADS = 2, 4
_INTEGERS = {"int8": PAIRS, "int4": PAIRS, "int8 by int8": QUADS, "int4 by int8": QUADS}
WIDER: dict[str, dict[str, int]] = {
    "avx2": _INTEGERS | {"int8 by int8": PAIRS},
    "avx512_plain": _INTEGERS | {"int8 by int8": PAIRS},
    "avx512": _INTEGERS,
    "avx512_bf16": _INTEGERS | {"bfloat16": PAIRS},
    "amx": {"bfloat16": 16, "int8": 16, "int4": 16, "int8 by int8": 32, "int4 by int8": 32},
}
"""Products that an instruction of the path makes for each that one of its multiply-adds in float32 makes, by the format
of the weights: pairs of 16 bits, quads of bytes, tiles of 16 rows of either. One where nothing is said: they are
widened to float32 first."""


def measure(trial: Trial) -> Finding:
    best = needs_native()
    inputs = np.random.default_rng(trial.seed + 1).normal(size=(MANY, WIDTH)).astype(np.float32)
    matrix = matrix_of(trial.seed)
    of_read: dict[tuple[str, str], Spread] = {}
    of_multiply: dict[tuple[str, str], Spread] = {}
    many: dict[tuple[str, str], Spread] = {}
    for path in native.paths():
        for kind in FORMATS:
            case = path, kind
            of_read[case], of_multiply[case], many[path, kind] = _limits(path, kind, matrix, inputs, trial)
    slowest = native.paths()[0]
    faster = {
        case: ratios(many[slowest, case[1]].values, found.values) for case, found in many.items() if case[0] != slowest
    }
    read = {kind: of_read[best, kind] for kind in FORMATS}
    multiply = {kind: of_multiply[best, kind] for kind in FORMATS}
    least_read = min(read, key=lambda kind: read[kind].median)
    least_multiply = min(multiply, key=lambda kind: multiply[kind].median)
    quicker = {kind: faster[best, kind] for kind in FORMATS} if best != slowest else {}
    least_quicker = min(quicker, key=lambda kind: quicker[kind].median, default="")
    return Finding(
        holds=(
            all(each.median >= READ for each in read.values())
            and all(each.median >= MULTIPLY for each in multiply.values())
            and all(each.median >= FASTER for each in quicker.values())
        ),
        result=(
            f"{best} streams weights of every format at {read[least_read]:.2f} ({least_read}) or more of a plain read "
            f"at one row, multiplies {MANY} rows at {multiply[least_multiply]:.2f} ({least_multiply}) or more of what "
            "its instructions can"
            + (f", {quicker[least_quicker]:.1f} ({least_quicker}) or more times {slowest}" if quicker else "")
        ),
        figures={f"{path}, {kind}, share of a plain read, one row": each for (path, kind), each in of_read.items()}
        | {
            f"{path}, {kind}, share of its instructions, {MANY} rows": each
            for (path, kind), each in of_multiply.items()
        }
        | {f"{path}, {kind}, times as fast as {slowest}, {MANY} rows": each for (path, kind), each in faster.items()},
        notes=[
            "Only the paths that this processor has are measured. A roofline is that of the path's own instructions: a "
            "loop of its multiply-adds in float32, times how many products its instruction for the format makes for "
            "one of theirs, as if it could be issued as often.",
        ],
    )


def _limits(path: str, kind: str, matrix: Floats, inputs: Floats, trial: Trial) -> tuple[Spread, Spread, Spread]:
    """(share of a plain read at one row, share of its instructions at many, seconds at many) of one path and format."""
    extension: Any = native.extension()
    first = Product(path, matrix, kind)
    products = [first, *(Product(path, matrix, kind) for _ in range(WORKING_SET // first.bytes))]
    memory = np.ones(len(products) * first.bytes // 4, np.float32)
    out = np.empty((MANY, OUT), np.float32)  # once: else the system's clearing of its pages would be a part of it

    def stream() -> None:
        for product in products:
            product(inputs[:1], out[:1])

    operations = WIDER.get(path, {}).get(kind, 1) * extension.probe_multiply(path, 1000) / 1000
    runs: dict[str, Callable[[], float]] = {
        f"{path}, {kind}, one row": partial(seconds, stream),
        f"{path}, {kind}, read": timed(extension.probe_read, path, memory),
        f"{path}, {kind}, {MANY} rows": timed(first, inputs, out),
        f"{path}, {kind}, multiply": timed(extension.probe_multiply, path, ROUNDS),
    }
    one, read, rows, peak = interleaved(runs, trial.repeats, trial.step).values()
    most = [operations * ROUNDS / each for each in peak]
    share = tuple(MANY * WIDTH * OUT / each / limit for each, limit in zip(rows, most, strict=True))
    return ratios(read, one), Spread(share), Spread(tuple(rows))


CLAIM = Claim(
    name="kernel_paths",
    title="Hardware acceleration by vector and matrix instructions",
    venue="the roofline model: Williams, Waterman and Patterson, CACM 2009",
    published=(
        "A kernel is limited by the memory that it reads or by the operations that the processor makes, whichever is "
        "slower; wider instructions raise the second limit, and good kernels come near to both."
    ),
    compared=(
        f"Products of {WIDTH} inputs and {OUT} outputs with weights in {', '.join(FORMATS)} on every path that this "
        f"processor runs: at one row against a plain read of as many bytes, at {MANY} rows against what the path's "
        "instructions for that format can multiply, by processor time of one thread."
    ),
    rule=(
        f"In every format the fastest path streams weights at {READ:g} of a plain read at one row, reaches "
        f"{MULTIPLY:g} of what its instructions can at {MANY} rows, and is {FASTER:g} times as fast there as the "
        "slowest (medians)."
    ),
    measure=measure,
)
