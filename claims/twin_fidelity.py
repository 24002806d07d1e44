"""The twin against the real server on this machine, with the server's clients beside it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from armillary.deployment import EngineSettings
from armillary.measure.claims import Claim, Finding, Trial
from armillary.measure.statistics import Spread
from armillary.models.locate import locate
from armillary.twin.profile_settings import ProfileSettings
from armillary.twin.profiling import measure_profile
from claims.real_server import LOADS, USERS, WORKLOADS, compare

SECONDS = 4.5
WITHIN = {"ttft": 0.10, "tpot": 0.05, "rate": 0.05}
"""Most that the median deviation below the knee may be."""
AT_THE_KNEE = 0.10


def measure(trial: Trial) -> Finding:
    """Profile, then serve and simulate each workload at each load."""
    with tempfile.TemporaryDirectory() as folder:
        trial.step("profile", 0)
        profile, _ = measure_profile(
            "isles",
            locate("isles"),
            EngineSettings(),
            ProfileSettings(),
            Path(folder) / "profile.json",
            lambda *_: None,
        )
    found = compare("isles", profile, EngineSettings(), list(WORKLOADS), LOADS, SECONDS, trial.repeats, trial.progress)
    below = {metric: found.typical(metric, below=True) for metric in WITHIN}
    near = {metric: found.typical(metric, below=False) for metric in WITHIN}
    knees = {name: found.knees(name)[:2] for name in WORKLOADS}
    off = [abs(twin / real - 1) for twin, real in knees.values() if twin is not None and real is not None]
    saturated = {each.name: each.deviation("rate") for each in found.closed()}
    knee = max(off, default=float("nan"))
    figures = {}
    for each in found.found:
        load = f"{USERS} users" if each.load is None else f"load {each.load:g}"
        for metric in WITHIN:
            shares = tuple(each.twin[metric] / run[metric] for run in each.real)
            figures[f"{each.name}, {load}, {metric}, twin over real"] = Spread(shares)
    return Finding(
        holds=all(below[m][0] <= most for m, most in WITHIN.items()) and bool(off) and knee <= AT_THE_KNEE,
        result="; ".join(
            f"{m} deviates by {below[m][0]:.1%} below the knee (real runs lie {below[m][1]:.0%} apart) and by "
            f"{near[m][0]:.1%} near it ({near[m][1]:.0%})"
            for m in WITHIN
        )
        + f"; knees, where both were reached, by at most {knee:.0%}",
        figures=figures,
        notes=[
            f"The profile was measured just before; its error on left-out means of steps is {found.error:.1%}. "
            f"Steps during the runs took {found.level:.2f} times as long, which the predictions allow for.",
            f"Throughput with {USERS} users: "
            + ", ".join(f"{name} {value:+.1%}" for name, value in saturated.items())
            + ". Very short requests are bound by HTTP, in server and client, which the twin takes for a delay only.",
            "Virtual cores whose speed others determine: the same workload at the same load, sent again minutes later, "
            "came out as far apart as said, and no prediction can be nearer to all runs than they are to each other.",
        ],
    )


CLAIM = Claim(
    name="twin_fidelity",
    title="Vidur: A Large-Scale Simulation Framework for LLM Inference",
    venue="MLSys 2024",
    published=(
        "A simulator that is calibrated on measured operators predicts latencies of LLM inference within 9 %, also "
        "near capacity."
    ),
    compared=(
        "`armillary serve` with the bundled model and a load client on the same cores, and the twin with a profile "
        f"measured just before: {', '.join(WORKLOADS)}, none of which the profile has seen, at {len(LOADS)} shares of "
        "the capacity from 0.3 to 1.25 and in a closed loop."
    ),
    rule=(
        f"Below the knee the median deviation of TTFT is at most {WITHIN['ttft']:.0%}, of TPOT {WITHIN['tpot']:.0%} "
        f"and of throughput {WITHIN['rate']:.0%}; every knee is predicted within {AT_THE_KNEE:.0%}."
    ),
    measure=measure,
)
