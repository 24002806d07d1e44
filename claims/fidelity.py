"""What both claims about the twin's fidelity measure: profiles, a real server, and the twin, for one model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from armillary.deployment import EngineSettings
from armillary.measure.claims import Finding, Trial
from armillary.measure.statistics import Spread
from armillary.twin.profile_settings import ProfileSettings
from claims.real_server import LOADS, Comparison, compare, measured

WITHIN = {"ttft": 0.10, "tpot": 0.05, "rate": 0.05}
"""Most that the median deviation below the knee may be."""
AT_THE_KNEE = 0.10
RULE = (
    f"Below the knee the median deviation of TTFT is at most {WITHIN['ttft']:.0%}, of TPOT {WITHIN['tpot']:.0%} "
    f"and of throughput {WITHIN['rate']:.0%}; every knee is within {AT_THE_KNEE:.0%} and in its interval."
)
TITLE = "Vidur: A Large-Scale Simulation Framework for LLM Inference"
VENUE = "MLSys 2024"
PUBLISHED = (
    "A simulator that is calibrated on measured operators predicts latencies of LLM inference within 9 %, also near "
    "capacity."
)


def fidelity(
    trial: Trial,
    model: str,
    folder: Path,
    engine: EngineSettings,
    profiling: ProfileSettings,
    names: Sequence[str],
    seconds: float,
) -> Finding:
    """Profile and serve in turn, then simulate each workload at each load.

    Args:
        model, folder: what to serve, and where its files are.
        names: of workloads.
        seconds: of each run at load 1.
    """
    profile = partial(measured, model, folder, engine, profiling)
    return judge(compare(model, profile, engine, names, LOADS, seconds, trial.repeats, trial.progress), names)


def judge(found: Comparison, names: Sequence[str]) -> Finding:
    """Whether the rule is met, and every figure."""
    below = {metric: found.typical(metric, below=True) for metric in WITHIN}
    near = {metric: found.typical(metric, below=False) for metric in WITHIN}
    knees = {name: found.knees(name) for name in names}
    off = [abs(each.twin / each.real - 1) for each in knees.values() if each.twin and each.real]
    outside = [name for name, each in knees.items() if each.real is not None and not each.inside]
    saturated = {each.name: each.deviation("rate") for each in found.closed()}
    knee = max(off, default=float("nan"))
    figures = {}
    for each in found.found:
        load = "closed loop" if each.load is None else f"load {each.load:g}"
        for metric in WITHIN:
            shares = tuple(1.0 + deviation for deviation in each.single(metric))
            figures[f"{each.name}, {load}, {metric}, twin over real"] = Spread(shares)
    return Finding(
        holds=all(below[m][0] <= most for m, most in WITHIN.items())
        and bool(off)
        and knee <= AT_THE_KNEE
        and not outside,
        result="; ".join(
            f"{m} deviates by {below[m][0]:.1%} below the knee (real runs lie {below[m][2]:.0%} apart) and by "
            f"{near[m][0]:.1%} near it ({near[m][2]:.0%})"
            for m in WITHIN
        )
        + f"; knees, where both were reached, by at most {knee:.0%}, {len(outside)} of them outside of their interval"
        + "; a single profile deviates from the single run after it, below the knee, by "
        + ", ".join(f"{below[m][1]:.1%} ({m})" for m in WITHIN),
        figures=figures,
        notes=[
            f"{len(found.profiles)} profiles, measured before the first round of real runs, between rounds and after "
            f"the last: the mean of what they say is held against the mean of the rounds. Their error on left-out "
            f"means of steps is {found.error:.1%}.",
            "Figures are of each round, as the profile before it has it.",
            "A knee's interval holds what it may be off by the profiles' error, taken for a machine's, and by how far "
            "means of so few runs differ by chance and from profile to profile, which the twin's own runs tell.",
            "Throughput of closed loops: "
            + ", ".join(f"{name} {value:+.1%}" for name, value in saturated.items())
            + ".",
            "Virtual cores whose speed others determine: the same workload at the same load, sent again minutes later, "
            "came out as far apart as said, and no prediction can be nearer to all runs than they are to each other.",
        ],
    )
