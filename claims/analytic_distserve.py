"""DistServe's own profile of OPT on A100, against the roofline of the data sheet."""

from __future__ import annotations

from armillary.measure.claims import Claim, Finding, Trial
from claims.published import RULE, Published, compare, cost_of, decode, prompt

PROFILE = {
    ("OPT-13B", 1): ((18.10, 0.10191, 7.122e-6), (19.93, 6.269e-4, 0.03851)),
    ("OPT-13B", 2): ((14.74, 0.06858, 2.450e-6), (13.29, 3.411e-4, 0.06296)),
    ("OPT-13B", 4): ((12.06, 0.03808, 5.226e-7), (10.26, 1.879e-4, 0.03269)),
    ("OPT-66B", 2): ((43.06, 0.27423, 2.248e-5), (48.29, 9.424e-4, 0.12755)),
    ("OPT-66B", 4): ((29.44, 0.15135, 8.317e-6), (30.76, 4.519e-4, 0.06328)),
    ("OPT-66B", 8): ((25.49, 0.10659, 3.391e-6), (23.16, 2.269e-4, 0.04801)),
}
"""(model, devices) -> milliseconds of a prompt as a + b tokens + c tokens^2, and of a decoding step as a + b context
+ c sequences. LLMServe/DistServe at 82831f1: simdistserve/estimators/profile_data/profiler-a100-80g.distserve.json."""
PROMPTS = (256, 512, 1024)
BATCHES = (1, 16, 64)
CONTEXT = 512


def figures(only: str = "") -> list[Published]:
    """Every published time, or those of one model."""
    published = []
    for (model, tensor), ((a, b, c), (d, e, f)) in PROFILE.items():
        if only not in ("", model):
            continue
        cost = cost_of(model, "a100-80", tensor)
        where = f"{model}, {tensor} x A100"
        published += [
            Published(f"{where}, prompt of {n}", (a + b * n + c * n * n) / 1e3, cost, ((prompt(n), 1),))
            for n in PROMPTS
        ]
        published += [
            Published(
                f"{where}, {n} sequences of {CONTEXT}", (d + e * n * CONTEXT + f * n) / 1e3, cost,
                ((decode(n, CONTEXT), 1),),
            )
            for n in BATCHES
        ]  # fmt: skip
    return published


def phase(each: Published) -> str:
    """Which of the two kinds of steps it is."""
    return "prompts" if "prompt" in each.what else "decoding"


def measure(trial: Trial) -> Finding:
    """Compare; nothing is run."""
    return compare(
        figures(),
        phase,
        ["The published figures are the authors' own fits to their engine (SwiftTransformer), read at these points."],
    )


CLAIM = Claim(
    name="analytic_distserve",
    title="DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model Serving",
    venue="OSDI 2024",
    published=(
        "The profile that its simulator plans with: step times of OPT-13B and OPT-66B on 1 to 8 A100 80 GB by tensor "
        "parallelism, in the authors' repository."
    ),
    compared=(
        f"Prompts of {', '.join(map(str, PROMPTS))} tokens and decoding of {', '.join(map(str, BATCHES))} sequences "
        f"with {CONTEXT} tokens of context each, predicted by the twin's roofline for the A100's data sheet. From "
        "a model of hardware, not from running it."
    ),
    rule=RULE,
    measure=measure,
)
