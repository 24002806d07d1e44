"""How many requests a second the twin simulates, on one core.

    python -m bench.twin_speed [--requests 4000] [--profile] [--json PATH]

Requests with a shared prefix of 128 tokens (one of 20), 64 tokens of their own and 200 to generate, at most 64 running.
`poisson` keeps a little less than 64 of them running, each at another place of its answer; `saturated` lets all come at
once, so that they begin and end in groups. Both with leaps and without. Seconds are of the process, not of the wall.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pstats
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from armillary.core.config import SchedulerConfig
from armillary.measure.workload import WorkItem
from armillary.twin.cost import IdealCost
from armillary.twin.simulate import SimulationResult, simulate

CONFIG = SchedulerConfig(
    num_blocks=3000, max_context=1024, max_step_tokens=512, max_running=64, max_waiting=10**9
)  # fmt: skip
STEP, PER_SEQUENCE, BETWEEN = 0.005, 0.0001, 0.0005
SECONDS = 200 * (STEP + 58 * PER_SEQUENCE + BETWEEN)
"""Of one request in a batch of 58."""
ITEM = WorkItem(id="", prompt_tokens=192, output_tokens=200).model_dump()


def requests(count: int, gap: float, seed: int = 0) -> Iterator[WorkItem]:
    """Requests made while they are read, with gaps that are exponential; 0 for all at once."""
    from random import Random

    rnd = Random(seed)
    now = 0.0
    for number in range(count):
        now += rnd.expovariate(1.0 / gap) if gap else 0.0
        told = {"id": str(number), "arrival": now, "prefix": ((f"p{rnd.randrange(20)}", 128),)}
        yield WorkItem.of_columns({**ITEM, **told})  # as a workload makes them from its columns


def run(count: int, gap: float, leap: bool) -> tuple[float, SimulationResult]:
    """CPU seconds of a simulation, and what it found."""
    gc.collect()
    started = time.process_time()
    result = simulate(CONFIG, requests(count, gap), IdealCost(STEP, PER_SEQUENCE, between=BETWEEN), leap=leap)
    return time.process_time() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="print where the time of the Poisson case goes")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()

    rows = []
    for name, gap in (("poisson", SECONDS / 58), ("saturated", 0.0)):
        for leap in (True, False):
            seconds = []
            for _ in range(options.repeats):
                spent, result = run(options.requests, gap, leap)
                seconds.append(spent)
            assert result.requests.ok.all()
            rate = sorted(options.requests / s for s in seconds)
            rows.append(
                {
                    "arrivals": name,
                    "leap": leap,
                    "requests_per_s": rate[len(rate) // 2],
                    "least": rate[0],
                    "most": rate[-1],
                    "steps": result.steps.steps,
                    "mean_running": result.steps.rows / result.steps.steps,
                    "cached": int(result.requests.cached_tokens.sum()) / (192 * options.requests),
                    "times_real": result.duration_s / min(seconds),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    told = {"rows": rows, "python": sys.version.split()[0], "max_rss_mib": _rss(), "requests": options.requests}
    print(json.dumps({k: v for k, v in told.items() if k != "rows"}))
    if options.json:
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    if options.profile:
        profile = cProfile.Profile()
        profile.enable()
        simulate(CONFIG, requests(options.requests, SECONDS / 58), IdealCost(STEP, PER_SEQUENCE, between=BETWEEN))
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(32)


def _rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
