"""A day of a deployment of many replicas, simulated: how long it takes and how much memory.

    python -m bench.twin_day [--requests 1000000] [--replicas 100] [--route power_of_two] [--json PATH]

Requests come as a Poisson process whose rate swings by a half about its mean, as a sine over 24 hours. Each has one of
200 prefixes of 128 tokens (the k-th is asked for in proportion to 1/k), 64 tokens of its own and 200 to generate,
without sessions. A replica is a small machine, so that a million requests a day keep a hundred busy: 100 ms a step and
25 ms more for each sequence in it, 87 % of what it can do at most in the busiest hour. Fewer requests are the first
piece of that day, fewer replicas get their share of the load.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from armillary.core.config import SchedulerConfig
from armillary.core.routing import ROUTES
from armillary.deployment import FleetSettings, ReplicaSettings
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.measure.workload import Workload
from armillary.twin.cost import IdealCost
from armillary.twin.fleet import simulate_fleet
from armillary.twin.fleet_result import FleetResult
from armillary.twin.member import ReplicaPlan

DAY_S = 86_400.0
CONFIG = SchedulerConfig(num_blocks=2000, max_context=1024, max_step_tokens=512, max_running=64)


def workload(requests: int, replicas: int) -> Workload:
    """So many requests at the mean rate of 10,000 a day for each replica."""
    rate = 10_000 * replicas / DAY_S
    return synthesise(
        WorkloadSpec(
            requests=requests, rate=rate, arrivals=f"diurnal:0.5,{DAY_S:g}", prompt_length="64", output_length="200",
            prefixes=200, prefix_length=128, prefix_zipf=1.0, seed=1,
        )
    )  # fmt: skip


def simulate(load: Workload, replicas: int, route: str) -> FleetResult:
    """The deployment's day."""

    def build(group: ReplicaSettings) -> ReplicaPlan:
        return ReplicaPlan(CONFIG, IdealCost(0.100, 0.025, between=0.001))

    settings = FleetSettings(replicas=(ReplicaSettings(count=replicas),), route=route)
    return simulate_fleet(settings, build, load)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--replicas", type=int, default=100)
    parser.add_argument("--route", choices=ROUTES, default="power_of_two")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()

    started, began = time.process_time(), time.perf_counter()
    load = workload(options.requests, options.replicas)
    made, before = time.process_time() - started, _rss()
    result = simulate(load, options.replicas, options.route)
    spent, wall = time.process_time() - started - made, time.perf_counter() - began
    run = result.requests
    assert run.ok.all()
    steps = sum(use.steps.steps for use in result.replicas)
    told = {
        "requests": options.requests,
        "replicas": options.replicas,
        "route": options.route,
        "cpu_s": spent,
        "wall_s": wall,
        "workload_cpu_s": made,
        "simulated_s": result.duration_s,
        "times_real": result.duration_s / spent,
        "requests_per_s": options.requests / spent,
        "steps": steps,
        "us_per_step": spent / steps * 1e6,
        "mean_running": sum(use.steps.rows for use in result.replicas) / steps,
        "cached": float(run.cached_tokens.sum() / run.prompt_tokens.sum()),
        "ttft_p95_s": float(np.percentile(run.ttft, 95)),
        "max_rss_mib": _rss(),
        "rss_before_mib": before,
        "python": sys.version.split()[0],
    }
    print(json.dumps(told, indent=2))
    if options.json:
        options.json.write_text(json.dumps(told, indent=2) + "\n")


def _rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
