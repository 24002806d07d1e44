"""Sarathi-Serve's own step times of Yi 34B on two A100, against the roofline of the data sheet."""

from __future__ import annotations

import numpy as np

from armillary.measure.claims import Claim, Finding, Trial
from armillary.twin.analytic import AnalyticCost, Parallel
from armillary.twin.hardware import find_hardware
from armillary.twin.shapes import read_shape
from armillary.twin.work import StepWork
from claims.published import MODELS, RULE, Published, calibration, compare, cost_of, decode, prompt

PROMPTS = {
    128: 48.09, 256: 121.35, 512: 105.58, 1024: 214.30, 2048: 366.03, 4096: 757.60, 8192: 1863.26, 16384: 4407.50,
}  # fmt: skip
"""Tokens of a prompt -> milliseconds of the step that computes it: osdi-experiments/figure-2/prefill.csv of
microsoft/sarathi-serve at 02d2567."""
CHUNKED = {
    2047: {512: 435.68, 1024: 444.17, 2048: 377.71},
    4095: {512: 921.96, 1024: 932.26, 2048: 793.90},
    8191: {512: 1958.53, 1024: 1946.24, 2048: 1643.37},
    16383: {512: 4512.83, 1024: 4357.55, 2048: 3651.59},
}
"""Tokens of a prompt -> tokens of a chunk -> milliseconds of all its steps: figure-9/chunking-overhead.csv there."""
DECODING = {1: 46.80, 2: 47.50, 4: 48.85, 8: 69.68, 16: 77.25, 32: 87.90, 64: 127.81, 128: 189.33}
"""Sequences -> milliseconds of a step that gives each a token: figure-2/decode.csv there."""
CONTEXT = 1022
"""What the sequences of `DECODING` hold: prompts of 1020 tokens and up to 4 more (operation_time_split_runs.sh)."""


def chunks(tokens: int, size: int) -> tuple[tuple[StepWork, int], ...]:
    """The steps of a prompt that is computed in chunks."""
    starts = range(0, tokens, size)
    counts = [min(size, tokens - start) for start in starts]
    return tuple(
        (StepWork(1, n, int(at + n == tokens), at + n, n * at + n * (n + 1) // 2), 1)
        for at, n in zip(starts, counts, strict=True)
    )


class HostBound(AnalyticCost):
    """Yi 34B on two A100 whose host needs so long for a step, and so long for each of its sequences, beside them.

    The two times are fitted to `DECODING`, where the GPUs have little to do: no data sheet of theirs knows them.
    """

    def __init__(self) -> None:
        super().__init__(
            read_shape(MODELS["Yi 34B"]), find_hardware("a100-80"), Parallel(2), dtype="float16", kv_dtype="float16"
        )
        each, fixed = np.polyfit(list(DECODING), [ms / 1e3 for ms in DECODING.values()], 1)
        self.host = (float(fixed), float(each))

    def step_s(self, work: StepWork) -> float:
        fixed, each = self.host
        return max(super().step_s(work), fixed + each * work.sequences)


def figures(cost: AnalyticCost | None = None) -> list[Published]:
    """Every published time, to be predicted by a model; None for that of the data sheet."""
    cost = cost or cost_of("Yi 34B", "a100-80", 2)
    found = [Published(f"prompt of {n}", ms / 1e3, cost, ((prompt(n), 1),)) for n, ms in PROMPTS.items()]
    found += [
        Published(f"prompt of {tokens} in chunks of {size}", ms / 1e3, cost, chunks(tokens, size))
        for tokens, by_size in CHUNKED.items()
        for size, ms in by_size.items()
    ]
    return found + [
        Published(f"{n} sequences of {CONTEXT}", ms / 1e3, cost, ((decode(n, CONTEXT), 1),))
        for n, ms in DECODING.items()
    ]


def phase(each: Published) -> str:
    """Which kind of steps it is."""
    if "chunks" in each.what:
        return "prompts in chunks"
    return "whole prompts" if "prompt" in each.what else "decoding"


def measure(trial: Trial) -> Finding:
    """Compare; nothing is run."""
    host = HostBound()
    return compare(
        figures(),
        phase,
        [
            "Decoding took up to five times what reading weights, keys and values can take, as if the host had needed "
            f"{1e3 * host.host[0]:.0f} ms for a step and {1e3 * host.host[1]:.1f} ms for each of its sequences. With "
            "that as the least time of a step, fitted to the figures of decoding: "
            f"{calibration(figures(host), phase)}.",
            "Measured by the authors on PCIe cards joined in pairs by NVLink, whose memory is 5 % slower than that of "
            "the card whose data sheet is read here.",
        ],
    )


CLAIM = Claim(
    name="analytic_sarathi",
    title="Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve",
    venue="OSDI 2024",
    published=(
        "Step times of Yi 34B on two A100 80 GB by tensor parallelism: whole prompts, prompts in chunks, and decoding, "
        "in the authors' repository."
    ),
    compared=(
        f"Prompts of {min(PROMPTS)} to {max(PROMPTS)} tokens, whole and in chunks of 512, 1024 and 2048, and decoding "
        f"of {min(DECODING)} to {max(DECODING)} sequences of {CONTEXT} tokens, predicted by the twin's roofline for "
        "the A100's data sheet. From a model of hardware, not from running it."
    ),
    rule=RULE,
    measure=measure,
)
