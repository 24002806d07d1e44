"""SARATHI: prompts computed in chunks beside decodes, against whole prompts in one step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from armillary.measure.claims import Claim, Finding, Trial
from armillary.measure.statistics import Spread, interleaved, ratios
from claims.subject import Gate, Job, Run, Seen, Subject

DECODES = 8
OUTPUT = 96
LONG_PROMPTS = 3
LONG = 1024
CHUNK = 64
NEEDED = 2.0


def long_prompts_during_decode(waiting: Sequence[Job], alive: Sequence[Seen]) -> int:
    """Hand over the short ones at once, and a long one each time the decodes have come a quarter further."""
    short = sum(len(job.prompt) < LONG for job in waiting)
    if short:
        return short
    decoded = max((len(seen.tokens) for seen in alive if len(seen.job.prompt) < LONG), default=OUTPUT)
    sent = LONG_PROMPTS - len(waiting)
    return int(decoded >= OUTPUT * (sent + 1) // (LONG_PROMPTS + 1))


def worst_gap(run: Run) -> float:
    """The longest wait between two tokens of any decode."""
    return max(max(seen.gaps) for seen in run.seen if len(seen.job.prompt) < LONG)


def median_gap(run: Run) -> float:
    """The median wait between two tokens of all decodes."""
    return float(np.median([gap for seen in run.seen if len(seen.job.prompt) < LONG for gap in seen.gaps]))


def long_ttft(run: Run) -> float:
    """Mean seconds to the first token of a long prompt."""
    return float(np.mean([seen.ttft for seen in run.seen if len(seen.job.prompt) == LONG]))


def measure(trial: Trial) -> Finding:
    limits = {"whole": LONG + DECODES, "chunked": CHUNK}
    subjects = {
        name: Subject(max_running=16, max_step_tokens=limit, kv_blocks=512, max_context=2048, prefix_cache=False)
        for name, limit in limits.items()
    }
    rng = np.random.default_rng(trial.seed)
    jobs = subjects["whole"].jobs(rng, [8] * DECODES + [LONG] * LONG_PROMPTS, [OUTPUT] * DECODES + [1] * LONG_PROMPTS)
    gate: Gate = long_prompts_during_decode
    for subject in subjects.values():
        subject.run(jobs, gate)  # warm-up
    runs = interleaved({n: partial(s.run, jobs, gate) for n, s in subjects.items()}, trial.repeats, trial.step)
    worst = {name: Spread(tuple(worst_gap(run) for run in each)) for name, each in runs.items()}
    bound = ratios(worst["whole"].values, worst["chunked"].values)
    cost = ratios(*([run.duration for run in runs[name]] for name in ("chunked", "whole")))
    same = all(run.outputs == runs["whole"][0].outputs for each in runs.values() for run in each)
    milliseconds = {name: Spread(tuple(value * 1e3 for value in spread.values)) for name, spread in worst.items()}
    usual = Spread(tuple(median_gap(run) * 1e3 for run in runs["chunked"]))
    return Finding(
        holds=bound.median >= NEEDED and bound.low > 1.0 and same,
        result=(
            f"the worst gap of running streams is {bound:.1f} times longer with whole prompts than with chunks of "
            f"{CHUNK} ({milliseconds['whole'].median:.0f} against {milliseconds['chunked'].median:.0f} ms); "
            f"chunking takes {cost:.2f} times as long over all"
        ),
        figures={
            "worst gap, whole over chunked": bound,
            "worst gap, whole prompts, ms": milliseconds["whole"],
            "worst gap, chunked, ms": milliseconds["chunked"],
            "median gap, chunked, ms": usual,
            "TTFT of the long prompts, chunked over whole": ratios(
                *([long_ttft(run) for run in runs[name]] for name in ("chunked", "whole"))
            ),
            "duration of the run, chunked over whole": cost,
        },
        notes=[f"Generated tokens {'are the same' if same else 'DIFFER'} with both budgets."],
    )


CLAIM = Claim(
    name="sarathi",
    title="SARATHI: Efficient LLM Inference by Piggybacking Decodes with Chunked Prefills",
    venue="arXiv 2308.16369, 2023",
    published=(
        "Splitting prompts into chunks that share their steps with decodes evens out the steps, instead of letting "
        "a long prompt hold up every running decode; its successor (Sarathi-Serve, OSDI 2024) states it as a bound "
        "on the time between tokens."
    ),
    compared=(
        f"{DECODES} streams of {OUTPUT} tokens during which {LONG_PROMPTS} prompts of {LONG} tokens arrive: a step "
        f"budget of {CHUNK} tokens against one that takes a whole prompt in one step. Measured: the longest gap "
        "between two tokens of any stream."
    ),
    rule=(
        f"The worst gap with whole prompts over that with chunks has a median of at least {NEEDED:g} and is above 1 "
        "in every repeat; both generate the same tokens."
    ),
    measure=measure,
)
