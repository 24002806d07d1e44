"""Cost of scheduling one step, in pure Python, with nothing behind it.

    python -m bench.scheduler_step [--running 64] [--profile]

Prints the median, 10th and 90th percentile of `next_step` + `commit` over steady decode steps, and the same
for steps that also admit and finish requests.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import time

from armillary.core.config import SchedulerConfig
from armillary.core.request import Request
from armillary.core.scheduler import Scheduler
from armillary.core.step import StepResult


def drive(scheduler: Scheduler, steps: int, refill: bool, output: int) -> list[float]:
    """Seconds of each step; with `refill`, a new request replaces each one that ends."""
    seconds = []
    serial = 0
    now = 0.0
    for _ in range(steps):
        while refill and scheduler.running_count + scheduler.waiting_count < scheduler.config.max_running:
            serial += 1
            scheduler.add(Request(f"r{serial}", tuple(range(serial, serial + 64)), output), now)
        started = time.perf_counter()
        step = scheduler.next_step(now)
        chosen = time.perf_counter()
        assert step is not None
        result = StepResult([7] * sum(entry.rows for entry in step.entries))
        executed = time.perf_counter()
        scheduler.commit(step, result, now + 0.01, now)
        ended = time.perf_counter()
        now += 0.01
        seconds.append(ended - executed + chosen - started)
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    deciles = statistics.quantiles(seconds, n=10)
    return {"p10_us": deciles[0] * 1e6, "median_us": statistics.median(seconds) * 1e6, "p90_us": deciles[8] * 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--running", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--profile", action="store_true", help="print where the time of the decode steps goes")
    options = parser.parse_args()

    context = options.steps + 128
    blocks = options.running * (context // 16 + 2)
    config = SchedulerConfig(blocks, context, max_running=options.running, max_step_tokens=2048)
    steady = Scheduler(config)
    for i in range(options.running):
        steady.add(Request(f"s{i}", tuple(range(i, i + 64)), options.steps + 64), 0.0)
    drive(steady, 20, refill=False, output=0)
    profile = cProfile.Profile()
    if options.profile:
        profile.enable()
    decode = drive(steady, options.steps, refill=False, output=0)
    profile.disable()
    churn = drive(Scheduler(config), options.steps, refill=True, output=100)
    print(json.dumps({"running": options.running, "decode": summary(decode), "churn": summary(churn)}, indent=2))
    if options.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(12)


if __name__ == "__main__":
    main()
