"""Users who think between requests, in the twin and by the mean values of a closed queueing network."""

from __future__ import annotations

import statistics

import numpy as np

from armillary.core.config import SchedulerConfig
from armillary.measure.claims import Claim, Finding, Trial
from armillary.measure.statistics import Spread
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.plan.estimate import estimate
from armillary.twin.fitted import FittedCost
from armillary.twin.profile import shipped_profile
from armillary.twin.simulate import simulate

USERS = (2, 8, 32, 64)
THINK_S = 1.0
REQUESTS = 600
SLOTS = 16
WITHIN = {"throughput": 0.05, "response": 0.10}
"""Most that the median deviation over the numbers of users may be."""


def measure(trial: Trial) -> Finding:
    """Simulate and solve each number of users."""
    cost = FittedCost(shipped_profile())
    config = SchedulerConfig(
        num_blocks=4096, max_context=1024, max_running=SLOTS, max_step_tokens=256, max_waiting=4096, prefix_cache=False
    )
    ratios: dict[str, dict[int, list[float]]] = {name: {users: [] for users in USERS} for name in WITHIN}
    worst, outside, steps = 0.0, 0, 0
    for turn in range(trial.repeats):
        for users in USERS:
            trial.step(f"{users} users", turn)
            workload = synthesise(
                WorkloadSpec(
                    requests=REQUESTS, users=users, think=THINK_S, prompt_length="lognormal:64,1,400",
                    output_length="lognormal:64,1,400", seed=trial.seed + turn,
                )
            )  # fmt: skip
            result = simulate(config, workload, cost)
            solved = estimate(config, cost, workload)
            ratios["throughput"][users].append(solved.throughput / (len(workload) / result.duration_s))
            ratios["response"][users].append(solved.e2e_s / float(np.nanmean(result.requests.e2e)))
            # The interactive response time law: users = throughput * (response + thinking).
            rate = len(workload) / result.duration_s
            cycle = float(np.nanmean(result.requests.e2e)) + float(np.mean([item.think for item in workload.items]))
            worst = max(worst, abs(rate * cycle / users - 1))
            outside, steps = outside + result.steps.outside, steps + result.steps.steps
    figures = {
        f"{name}, {users} users, solved over simulated": Spread(tuple(found))
        for name, by_users in ratios.items()
        for users, found in by_users.items()
    }
    deviation = {
        name: statistics.median(abs(statistics.median(found) - 1) for found in by_users.values())
        for name, by_users in ratios.items()
    }
    error = cost.error or (0.0, 0.0)
    return Finding(
        holds=all(deviation[name] <= most for name, most in WITHIN.items()),
        result=", ".join(f"{name} deviates by {value:.1%}" for name, value in deviation.items())
        + f" (median over {', '.join(map(str, USERS))} users); the interactive response time law is met within "
        f"{worst:.1%}",
        figures=figures,
        notes=[
            "From simulation. Its cost model is fitted to the profile that is shipped, and was wrong by "
            f"{error[0]:.1%} (median; p95 {error[1]:.1%}) on steps left out of its fit; {outside / max(1, steps):.1%} "
            "of the steps lie outside of what was measured.",
            "The law counts the run's end too, in which users that have nothing left to ask no longer think.",
            "Solved with mean lengths only, by normalising constants with a speed that depends on the number present.",
        ],
    )


CLAIM = Claim(
    name="twin_mva",
    title="Mean-Value Analysis of Closed Multichain Queuing Networks; Computational Algorithms for Closed Queueing "
    "Networks with Exponential Servers; The Operational Analysis of Queueing Network Models",
    venue="Journal of the ACM 27(2), 1980; Communications of the ACM 16(9), 1973; ACM Computing Surveys 10(3), 1978",
    published=(
        "A closed network's throughput and response time follow from mean service times and the number of users alone, "
        "although real service times are not exponential."
    ),
    compared=(
        f"{', '.join(map(str, USERS))} users who think for {THINK_S:g} s on average, {REQUESTS} requests with "
        f"lognormal prompts and answers of 64 tokens on average, one engine of {SLOTS} slots: the twin of the bundled "
        "model, and the network of a batch server and thinking solved with mean lengths. From a simulation, not from "
        "running it."
    ),
    rule=(
        f"The median deviation over the numbers of users is at most {WITHIN['throughput']:.0%} for throughput and "
        f"{WITHIN['response']:.0%} for response time."
    ),
    measure=measure,
)
