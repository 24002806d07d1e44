"""Users who think between requests, in the twin and by the mean values of a closed queueing network."""

from __future__ import annotations

import statistics

import numpy as np

from armillary.core.config import SchedulerConfig
from armillary.measure.claims import Claim, Finding, Trial
from armillary.measure.statistics import Spread
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.measure.workload import Workload
from armillary.plan.estimate import estimate
from armillary.twin.fitted import FittedCost
from armillary.twin.outcome import SimulatedOutcomes
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
            rate, response, thinking = _while_all_ask(result.requests, users, workload)
            ratios["throughput"][users].append(solved.throughput / rate)
            ratios["response"][users].append(solved.e2e_s / response)
            # The interactive response time law: users = throughput * (response + thinking).
            worst = max(worst, abs(rate * (response + thinking) / users - 1))
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
            "Simulated figures are those of the time in which all users ask: from when each has had an answer to when "
            "the last request is taken up.",
            "Solved with mean lengths only, by normalising constants: a batch server whose speed depends on the number "
            "present, and the desk at which requests are read one after another.",
        ],
    )


def _while_all_ask(run: SimulatedOutcomes, users: int, workload: Workload) -> tuple[float, float, float]:
    """(requests per second, mean seconds of answering, mean seconds of thinking) while nobody has run out of questions,
    and after each user has had an answer: before, none waits for another; after, fewer and fewer ask."""
    thinking = np.array([item.think for item in workload.items])
    taken = run.due - thinking  # when a user begins to think about it: at the answer before
    first, last = float(np.sort(run.end)[users]), float(taken.max())
    inside = (run.due >= first) & (run.due < last)
    rate = float(((run.end >= first) & (run.end < last)).sum()) / (last - first)
    return rate, float(run.e2e[inside].mean()), float(thinking[inside].mean())


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
        "model, and the network of a batch server, the desk before it and thinking, solved with mean lengths. From a "
        "simulation, not from running it."
    ),
    rule=(
        f"The median deviation over the numbers of users is at most {WITHIN['throughput']:.0%} for throughput and "
        f"{WITHIN['response']:.0%} for response time."
    ),
    measure=measure,
)
