"""Hardware acceleration: what each path of the native kernels reaches of what its instructions allow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from armillary.kernels import native
from armillary.measure.claims import Claim, Finding, Trial
from armillary.measure.statistics import Spread, interleaved, ratios
from claims.products import OUT, WIDTH, Product, matrix_of, needs_native, seconds, timed

MANY = 512
READ, MULTIPLY, FASTER = 0.6, 0.6, 1.5
ROUNDS = 300_000
COPIES = 6
"""Matrices that are read in turn at one row, so that no cache holds them all."""


def measure(trial: Trial) -> Finding:
    best = needs_native()
    extension: Any = native.extension()
    inputs = np.random.default_rng(trial.seed + 1).normal(size=(MANY, WIDTH)).astype(np.float32)
    matrix = matrix_of(trial.seed)
    of_read: dict[str, Spread] = {}
    of_multiply: dict[str, Spread] = {}
    many: dict[str, Any] = {}
    for path in native.paths():
        products = [Product(path, matrix) for _ in range(COPIES)]
        memory = np.ones(COPIES * products[0].bytes // 4, np.float32)

        def stream(products: list[Product] = products) -> None:
            for product in products:
                product(inputs[:1])

        operations = extension.probe_multiply(path, 1000) / 1000
        runs: dict[str, Callable[[], float]] = {
            f"{path}, one row": partial(seconds, stream),
            f"{path}, read": timed(extension.probe_read, path, memory),
            f"{path}, {MANY} rows": timed(products[0], inputs),
            f"{path}, multiply": timed(extension.probe_multiply, path, ROUNDS),
        }
        one, read, rows, peak = interleaved(runs, trial.repeats, trial.step).values()
        of_read[path] = ratios(read, one)
        most = [operations * ROUNDS / each for each in peak]
        of_multiply[path] = Spread(
            tuple(MANY * WIDTH * OUT / each / limit for each, limit in zip(rows, most, strict=True))
        )
        many[path] = rows
    slowest = native.paths()[0]
    faster = {path: ratios(many[slowest], many[path]) for path in native.paths()}
    return Finding(
        holds=(
            of_read[best].median >= READ
            and of_multiply[best].median >= MULTIPLY
            and (best == slowest or faster[best].median >= FASTER)
        ),
        result=(
            f"{best} streams weights at {of_read[best]:.2f} of a plain read at one row, multiplies {MANY} rows at "
            f"{of_multiply[best]:.2f} of its multiply-adds, {faster[best]:.1f} times as fast as {slowest}"
        ),
        figures={f"{path}, share of a plain read, one row": each for path, each in of_read.items()}
        | {f"{path}, share of its multiply-adds, {MANY} rows": each for path, each in of_multiply.items()}
        | {f"{path}, times as fast as {slowest}, {MANY} rows": each for path, each in faster.items()},
        notes=[
            "Only the paths that this processor has are measured. A roofline is that of the path's own instructions."
        ],
    )


CLAIM = Claim(
    name="kernel_paths",
    title="Hardware acceleration by vector and matrix instructions",
    venue="the roofline model: Williams, Waterman and Patterson, CACM 2009",
    published=(
        "A kernel is limited by the memory that it reads or by the operations that the processor makes, whichever is "
        "slower; wider instructions raise the second limit, and good kernels come near to both."
    ),
    compared=(
        f"Products of {WIDTH} inputs and {OUT} outputs in float32 on every path that this processor runs: at one row "
        f"against a plain read of as many bytes, at {MANY} rows against a loop of nothing but the path's "
        "multiply-adds, by processor time of one thread."
    ),
    rule=(
        f"The fastest path streams weights at {READ:g} of a plain read at one row, reaches {MULTIPLY:g} of its "
        f"multiply-adds at {MANY} rows, and is {FASTER:g} times as fast there as the slowest (medians)."
    ),
    measure=measure,
)
