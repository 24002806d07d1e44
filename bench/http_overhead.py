"""What HTTP costs a server: processor time of its event loop for a request, and for each token that it streams.

    python -m bench.http_overhead [--trees src OTHER/src] [--rounds 3] [--requests 200] [--json FILE]

`armillary serve` answers the bundled model; the load client asks, streaming, for completions of prompts of 40 tokens:
of 2 tokens and of 62, one user at a time, then 16. What is counted is the time that the system charges the thread of
the event loop with, which other load on the machine hardly changes. The difference between 62 and 2 tokens is what a
token costs, and what is left of 2 tokens without them a request. Of the engine's thread, the same load is told beside.

With several source trees, servers of each take turns; medians, least and most of the rounds. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil

from armillary.deployment.engine import EngineSettings
from armillary.measure.client import calibrate, drive, first_model
from armillary.measure.report import write_text
from armillary.measure.target import Target
from armillary.measure.workload import WorkItem, Workload
from armillary.twin.served import serving

PROMPT, SHORT, LONG = 40, 2, 62
USERS = (1, 16)
WARM = 40
"""Requests of each length before any is counted."""


def thread_seconds(process: psutil.Process) -> tuple[float, float]:
    """Processor time so far of the event loop, which is the main thread, and of all other threads."""
    times = {thread.id: thread.user_time + thread.system_time for thread in process.threads()}
    loop = times.pop(process.pid)
    return loop, sum(times.values())


async def costs(url: str, process: psutil.Process, requests: int, seed: int) -> dict[str, float]:
    """Milliseconds of the loop's processor time for a request and a token; of the other threads, for a long request."""
    model = await first_model(url)
    calibration, _ = await calibrate(Target(url=url, model=model))
    seeds = iter(range(1000 * seed, 1000 * seed + 1000))

    async def run(tokens: int, users: int, count: int) -> tuple[float, float]:
        items = tuple(WorkItem(id=str(n), prompt_tokens=PROMPT, output_tokens=tokens) for n in range(count))
        before = thread_seconds(process)
        await drive(Workload(items, users=users), Target(url=url, model=model, seed=next(seeds)), calibration)
        after = thread_seconds(process)
        return 1e3 * (after[0] - before[0]) / count, 1e3 * (after[1] - before[1]) / count

    await run(SHORT, USERS[-1], WARM)
    await run(LONG, USERS[-1], WARM)
    found = {}
    for users in USERS:
        short, _ = await run(SHORT, users, 2 * requests)
        long, engine = await run(LONG, users, requests)
        token = (long - short) / (LONG - SHORT)
        found[f"token_ms_{users}"] = token
        found[f"request_ms_{users}"] = short - SHORT * token
        found[f"engine_ms_{users}"] = engine
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", nargs="+", default=["src"], metavar="PATH", help="source trees (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=200, help="of 62 tokens; twice as many of 2 (%(default)s)")
    parser.add_argument("--label", nargs="+", default=None, help="what the trees are called in the results")
    parser.add_argument("--json", type=Path, default=None, metavar="PATH")
    options = parser.parse_args()
    labels = options.label or options.trees
    path = os.environ.get("PYTHONPATH", "")
    found: dict[str, dict[str, list[float]]] = {label: defaultdict(list) for label in labels}
    for round_ in range(options.rounds):
        for label, tree in zip(labels, options.trees, strict=True):
            os.environ["PYTHONPATH"] = f"{Path(tree).resolve()}{os.pathsep}{path}"
            with tempfile.TemporaryDirectory() as folder, serving("isles", EngineSettings(), Path(folder)) as url:
                (process,) = psutil.Process().children()
                for name, value in asyncio.run(costs(url, process, options.requests, round_)).items():
                    found[label][name].append(value)
            last = ", ".join(f"{name} {values[-1]:.3f}" for name, values in found[label].items())
            print(f"{label}: {last}", flush=True)
    results: dict[str, Any] = {
        label: {name: {"median": statistics.median(v), "least": min(v), "most": max(v)} for name, v in each.items()}
        for label, each in found.items()
    }
    for label, each in results.items():
        for name, value in each.items():
            print(f"{label:>12} {name:>14} {value['median']:8.3f} ({value['least']:.3f} to {value['most']:.3f})")
    if options.json is not None:
        write_text(options.json, json.dumps({"rounds": options.rounds, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
