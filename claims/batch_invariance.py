"""Batch invariance: products whose bits do not depend on the batch, at no cost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from armillary.measure.claims import Claim, Finding, Trial
from armillary.measure.statistics import Spread, interleaved, ratios
from claims.products import FORMATS, OUT, WIDTH, Product, matrix_of, needs_native, timed, torch_alone

ROWS = (1, 4, 16, 64, 512)
COST = 0.95
Variant = Callable[[Tensor], Tensor]
"""Rows to their products with a matrix that was given before."""


def measure(trial: Trial) -> Finding:
    with torch_alone(), torch.inference_mode():
        return _measure(trial, needs_native())


def _measure(trial: Trial, path: str) -> Finding:
    matrix = matrix_of(trial.seed)
    inputs = np.random.default_rng(trial.seed + 1).normal(size=(max(ROWS), WIDTH)).astype(np.float32)
    speed: dict[tuple[str, int], Spread] = {}
    equal = True
    changed: dict[str, int] = {}
    for kind, made in VARIANT.items():
        ours, theirs = Product(path, matrix, kind), made(torch.from_numpy(matrix))
        given = torch.from_numpy(inputs).to(torch.bfloat16 if kind in NARROW else torch.float32)
        for rows in ROWS:
            runs = {"invariant": timed(ours, inputs[:rows]), "variant": timed(theirs, given[:rows])}
            named = {f"{kind}, {name}, {rows} rows": run for name, run in runs.items()}
            invariant, other = interleaved(named, trial.repeats, trial.step).values()
            speed[kind, rows] = ratios(other, invariant)
        alone, single = ours(inputs[:1])[0].tobytes(), theirs(given[:1])[0]
        equal = equal and all(ours(inputs[:rows])[0].tobytes() == alone for rows in ROWS)
        changed[kind] = sum(not torch.equal(theirs(given[:rows])[0], single) for rows in ROWS)
    slowest = min(speed, key=lambda case: speed[case].median)
    slower = sum(each.median < COST for each in speed.values())
    return Finding(
        holds=equal and changed["float32"] > 0 and not slower,
        result=(
            f"the first row of a product has {'the same' if equal else 'other'} bits beside any number of others in "
            f"every format, and other bits beside {changed['float32']} of {len(ROWS)} numbers in torch's of float32; "
            f"least speed beside torch's {speed[slowest]:.2f}, in {slowest[0]} at {slowest[1]} rows, less than "
            f"{COST:g} in {slower} of {len(speed)}"
        ),
        figures={
            f"{kind}, times as fast as the variant product, {rows} rows": each for (kind, rows), each in speed.items()
        }
        | {
            f"{kind}, numbers of rows beside which the variant product's first row changes": Spread((float(count),))
            for kind, count in changed.items()
        },
        notes=[
            "The variant product is torch's for the same weights (oneDNN, MKL, FBGEMM and its own), which chooses its "
            "algorithm by the number of rows or rounds all rows by one scale; not the best possible. Its bfloat16, "
            "int8 and int4 answer in bfloat16, in which a change of order may not show. Its int8 and int4 multiply "
            "rows of bfloat16, ours rows rounded to 16 bits; it has no product of 4 bits by 8.",
            "This is about matrix products; attention and whole requests are held to the bit by the tests of equality, "
            "and whole engines are compared in docs/performance.md.",
        ],
    )


def _float32(matrix: Tensor) -> Variant:
    return lambda rows: F.linear(rows, matrix)


def _bfloat16(matrix: Tensor) -> Variant:
    narrow = matrix.bfloat16()
    return lambda rows: F.linear(rows, narrow)


def _int8(matrix: Tensor) -> Variant:
    scales = matrix.abs().amax(1) / 127
    whole = (matrix / scales[:, None]).round().to(torch.int8)
    narrow = scales.bfloat16()
    return lambda rows: torch._weight_int8pack_mm(rows, whole, narrow)


def _int8_by_int8(matrix: Tensor) -> Variant:
    scales = matrix.abs().amax(1) / 127
    whole = torch.quantize_per_channel(matrix, scales, torch.zeros(len(matrix), dtype=torch.int64), 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(whole, None)
    return lambda rows: torch.ops.quantized.linear_dynamic(rows, packed, False)


def _int4(matrix: Tensor) -> Variant:
    group = FORMATS["int4"][1]
    grouped = matrix.view(len(matrix), -1, group)
    least, most = grouped.amin(-1), grouped.amax(-1)
    scales = (most - least) / 15
    whole = ((grouped - least[..., None]) / scales[..., None]).round().to(torch.int32).view(len(matrix), -1)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 1)
    meant = torch.stack([scales, least + 8 * scales], -1).permute(1, 0, 2).contiguous().bfloat16()
    return lambda rows: torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, group, meant)


VARIANT: dict[str, Callable[[Tensor], Variant]] = {
    "float32": _float32, "bfloat16": _bfloat16, "int8": _int8, "int8 by int8": _int8_by_int8, "int4": _int4
}  # fmt: skip
NARROW = ("bfloat16", "int8", "int4")
"""Formats whose variant product takes rows of bfloat16."""


CLAIM = Claim(
    name="batch_invariance",
    title="Defeating Nondeterminism in LLM Inference",
    venue="Thinking Machines Lab, 2025",
    published=(
        "Kernels whose results do not depend on the size of the batch make a request's tokens reproducible; those "
        "published cost about 20 % of a matrix product's speed, and serving with them was about 1.6 times slower."
    ),
    compared=(
        f"Products of {WIDTH} inputs and {OUT} outputs with weights in {', '.join(VARIANT)}, "
        f"{', '.join(map(str, ROWS))} rows: the native kernels, which compute every element by one chain of "
        "operations, against torch's for the same weights, by processor time of one thread."
    ),
    rule=(
        "A row's bits are the same beside any number of other rows in every format, and torch's in float32 are not; in "
        f"every format and at every number of rows the invariant product has at least {COST:g} of the speed of torch's "
        "(median). Here invariance is to cost nothing, which refutes that it must."
    ),
    measure=measure,
)
