"""Batch invariance: products whose bits do not depend on the batch, at no cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from armillary.measure.claims import Claim, Finding, Trial
from armillary.measure.statistics import Spread, interleaved, ratios
from claims.products import OUT, WIDTH, Product, matrix_of, needs_native, timed, torch_alone

ROWS = (1, 4, 16, 64, 512)
COST = 0.95


def measure(trial: Trial) -> Finding:
    with torch_alone():
        return _measure(trial, needs_native())


def _measure(trial: Trial, path: str) -> Finding:
    matrix = matrix_of(trial.seed)
    ours, theirs = Product(path, matrix), torch.from_numpy(matrix)
    inputs = np.random.default_rng(trial.seed + 1).normal(size=(max(ROWS), WIDTH)).astype(np.float32)

    def variant(rows: int) -> Any:
        with torch.inference_mode():
            return F.linear(torch.from_numpy(inputs[:rows]), theirs)

    speed: dict[int, Spread] = {}
    for rows in ROWS:
        runs = {"invariant": timed(ours, inputs[:rows]), "variant": timed(variant, rows)}
        found = interleaved({f"{name}, {rows} rows": run for name, run in runs.items()}, trial.repeats, trial.step)
        invariant, other = found.values()
        speed[rows] = ratios(other, invariant)
    alone = ours(inputs[:1])[0].tobytes()
    equal = all(ours(inputs[:rows])[0].tobytes() == alone for rows in ROWS)
    single = variant(1)[0].numpy().tobytes()
    changed = sum(variant(rows)[0].numpy().tobytes() != single for rows in ROWS)
    slowest = min(speed, key=lambda rows: speed[rows].median)
    return Finding(
        holds=equal and changed > 0 and all(each.median >= COST for each in speed.values()),
        result=(
            f"the first row of a product has {'the same' if equal else 'other'} bits beside any number of others, and "
            f"other bits beside {changed} of {len(ROWS)} numbers in torch's; least speed beside torch's "
            f"{speed[slowest]:.2f}, at {slowest} rows"
        ),
        figures={f"times as fast as the variant product, {rows} rows": each for rows, each in speed.items()}
        | {"numbers of rows beside which the variant product's first row changes": Spread((float(changed),))},
        notes=[
            "The variant product is torch's (oneDNN or MKL), which chooses its algorithm by the number of rows; it is "
            "the best variant one at hand, not the best possible.",
            "This is about matrix products; attention and whole requests are held to the bit by the tests of equality.",
        ],
    )


CLAIM = Claim(
    name="batch_invariance",
    title="Defeating Nondeterminism in LLM Inference",
    venue="Thinking Machines Lab, 2025",
    published=(
        "Kernels whose results do not depend on the size of the batch make a request's tokens reproducible; those "
        "published cost about 20 % of a matrix product's speed, and serving with them was about 1.6 times slower."
    ),
    compared=(
        f"Products of {WIDTH} inputs and {OUT} outputs in float32, {', '.join(map(str, ROWS))} rows: the native "
        "kernels, which compute every element by one chain of operations, against torch's, by processor time of one "
        "thread."
    ),
    rule=(
        "A row's bits are the same beside any number of other rows, and torch's are not; at every number of rows the "
        f"invariant product has at least {COST:g} of the speed of torch's (median). Here invariance is to cost "
        "nothing, which refutes that it must."
    ),
    measure=measure,
)
