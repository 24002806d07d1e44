"""What it costs an engine to remember its steps, and what one who watches costs it.

    python -m bench.timeline_step [--running 64] [--blocks 4096]

The same engine, the same requests, with the ring and without, in alternation; medians of a step's time outside the
executor, in steady decode and with requests that come and go. Then the time of one snapshot.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import count

from armillary.core.clock import VirtualClock
from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.recent import Recent
from armillary.core.request import Request
from armillary.core.scheduler import Scheduler
from armillary.core.snapshot import take_snapshot
from armillary.core.step import Step, StepResult

SERIAL = count(1000)


class Quick:
    """Finds the token 7 everywhere, in no time; notes how long it took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def run(self, step: Step) -> StepResult:
        started = time.perf_counter()
        result = StepResult([7] * sum(entry.rows for entry in step.entries), duration=0.01)
        self.seconds = time.perf_counter() - started
        return result


def engine(options: argparse.Namespace, output: int, ring: bool) -> Engine:
    config = SchedulerConfig(options.blocks, 2048, max_running=options.running, max_step_tokens=2048)
    recent = Recent(4096) if ring else None
    made = Engine(Scheduler(config), Quick(), VirtualClock(), lambda events: None, recent=recent)
    for number in range(options.running):
        made.submit(Request(f"r{number}", tuple(range(number, number + 64)), output if output > 500 else 20 + number))
    return made


def steps(made: Engine, number: int, refill: int) -> list[float]:
    """Seconds of each step outside the executor; with `refill`, requests of so many tokens follow each other."""
    seconds = []
    assert isinstance(made.executor, Quick)
    for _ in range(number):
        while (
            refill and made.scheduler.running_count + made.scheduler.waiting_count < made.scheduler.config.max_running
        ):
            serial = next(SERIAL)
            made.submit(Request(f"r{serial}", tuple(range(serial, serial + 64)), refill))
        started = time.perf_counter()
        made.step()
        seconds.append(time.perf_counter() - started - made.executor.seconds)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--running", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    found: dict[str, dict[str, list[float]]] = {}
    for name, output, refill in (("decode", 1900, 0), ("churn", 100, 100)):
        sides = found[name] = {"without": [], "with": []}
        for _ in range(options.rounds):
            for ring in (False, True):
                made = engine(options, output, ring)
                steps(made, 30, refill)
                sides["with" if ring else "without"].append(statistics.median(steps(made, 400, refill)) * 1e6)
    made = engine(options, 1900, True)
    steps(made, 400, 0)
    snapshots = []
    for _ in range(50):
        started = time.perf_counter()
        take_snapshot(made, 200, 1000)
        snapshots.append((time.perf_counter() - started) * 1e6)
    print(
        json.dumps(
            {
                "running": options.running,
                **{
                    name: {side: {"median_us": statistics.median(v), "min_us": min(v)} for side, v in sides.items()}
                    for name, sides in found.items()
                },
                "snapshot_us": statistics.median(snapshots),
                "blocks": options.blocks,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
