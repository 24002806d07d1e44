"""Splitwise's measurements of Llama 2 70B on A100 and H100, against the roofline of the data sheets."""

from __future__ import annotations

from armillary.measure.claims import Claim, Finding, Trial
from claims.published import RULE, Published, compare, cost_of, decode, prompt

TITLES = {"a100-80": "A100", "h100": "H100"}
PROMPTS = (512, 1024, 2048, 4096)
BATCHES = (1, 4, 16, 32)
MEASURED = {
    ("a100-80", 2): ((196.9, 377.1, 688.1, 1485.3), (54.9, 60.5, 65.5, 72.2)),
    ("a100-80", 4): ((127.0, 227.1, 403.3, 965.2), (45.0, 45.1, 48.5, 52.3)),
    ("a100-80", 8): ((94.3, 154.5, 274.2, 661.2), (44.9, 45.8, 50.4, 53.0)),
    ("h100", 2): ((83.8, 158.0, 310.3, 642.7), (37.0, 40.0, 42.0, 52.3)),
    ("h100", 4): ((59.6, 105.6, 200.7, 463.5), (29.7, 29.9, 32.8, 36.9)),
    ("h100", 8): ((53.4, 77.9, 136.8, 390.3), (29.8, 31.8, 34.2, 38.6)),
}
"""(hardware, devices) -> medians of milliseconds: of one prompt of each length, and of a decoding step of each batch
after prompts of 512 with 128 tokens generated: data/perf_model.csv of Mutinifni/splitwise-sim at 8f99e7d."""
CONTEXT = 512 + 64


def measure(trial: Trial) -> Finding:
    """Compare; nothing is run."""
    published = []
    for (hardware, tensor), (prompts, decodes) in MEASURED.items():
        cost = cost_of("Llama 2 70B", hardware, tensor)
        where = f"{tensor} x {TITLES[hardware]}"
        published += [
            Published(f"{where}, prompt of {n}", ms / 1e3, cost, ((prompt(n), 1),))
            for n, ms in zip(PROMPTS, prompts, strict=True)
        ]
        published += [
            Published(f"{where}, {n} sequences", ms / 1e3, cost, ((decode(n, CONTEXT), 1),))
            for n, ms in zip(BATCHES, decodes, strict=True)
        ]
    return compare(
        published,
        lambda each: "prompts" if "prompt" in each.what else "decoding",
        [
            "Prompts in batches are left out: their published times grow faster than their tokens, so something else "
            "than the model was waited for.",
            "Decoding was published at about 45 ms on four and on eight A100 and 30 ms on four and on eight H100: the "
            "engine of 2023 waited for its host there, which no data sheet of a GPU knows. That is where most of "
            "the deviation comes from, and why a prediction from a data sheet is a bound and not a promise.",
        ],
    )


CLAIM = Claim(
    name="analytic_splitwise",
    title="Splitwise: Efficient Generative LLM Inference Using Phase Splitting",
    venue="ISCA 2024",
    published=(
        "Prompt and token times of Llama 2 70B on 2, 4 and 8 A100 80 GB and H100, the measurements behind its "
        "simulator, in the authors' repository."
    ),
    compared=(
        "Single prompts and decoding steps predicted by the twin's roofline for the data sheets. From a model of "
        "hardware, not from running it."
    ),
    rule=RULE,
    measure=measure,
)
