"""How well the twin predicts a real server on this machine: four workloads that no profile has seen, at three loads.

    python bench/twin_costs.py [--model isles] [--profile FILE] [--seconds 8] [--repeats 2] [--json FILE]

Each workload is sent to `armillary serve` by the load client, `--repeats` times, and simulated with the cost model of a
profile, with the lengths that the server counted. Loads are shares of the throughput that the twin itself reaches
with 64 users, so that the highest lies near the knee. Printed: medians of TTFT and TPOT and the output rate, the twin's
deviation from the mean of the real runs, and how far the real runs lie apart among themselves, which no
prediction can beat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from armillary.core.config import SchedulerConfig
from armillary.deployment.engine import EngineSettings
from armillary.measure.client import calibrate, drive, first_model
from armillary.measure.outcomes import Outcomes
from armillary.measure.record import RequestRecord
from armillary.measure.target import Target
from armillary.measure.workload import WorkItem, Workload
from armillary.models.config import read_json
from armillary.models.locate import locate
from armillary.twin.fitted import FittedCost
from armillary.twin.here import profile_for
from armillary.twin.profile import Profile
from armillary.twin.served import JournalStep, journal_steps, serving
from armillary.twin.simulate import simulate

WORKLOADS = {"chat": (150, 60), "rag": (700, 40), "short": (40, 25), "long answers": (80, 180)}
"""Name -> medians of prompt and output tokens; both lognormal."""
LOADS = (0.3, 0.6, 0.85)
METRICS = ("ttft", "tpot", "rate")


@dataclass(frozen=True)
class Found:
    """One workload at one load: medians of seconds, and output tokens per second."""

    workload: str
    load: float
    requests: int
    real: list[dict[str, float]]
    twin: dict[str, float]
    outside: float

    def deviation(self, metric: str) -> float:
        """The twin's over the mean of the real runs, less one."""
        return self.twin[metric] / float(np.mean([run[metric] for run in self.real])) - 1.0

    def spread(self, metric: str) -> float:
        """Largest over smallest of the real runs, less one."""
        values = [run[metric] for run in self.real]
        return max(values) / min(values) - 1.0


def draw(name: str, rate: float | None, count: int, seed: int, context: int) -> Workload:
    """Requests of a workload: Poisson arrivals at `rate`, or 64 users."""
    rng = np.random.default_rng(seed)
    prompt, output = WORKLOADS[name]
    at = 0.0
    items = []
    for index in range(count):
        at += rng.exponential(1.0 / rate) if rate else 0.0
        tokens = int(np.clip(rng.lognormal(np.log(prompt), 0.6), 2, context // 2))
        wanted = int(np.clip(rng.lognormal(np.log(output), 0.5), 2, context // 4))
        arrival = at if rate else None
        items.append(WorkItem(id=str(index), arrival=arrival, prompt_tokens=tokens, output_tokens=wanted))
    return Workload(tuple(items), users=None if rate else 64)


def metrics(found: Outcomes) -> dict[str, float]:
    """Medians of the requests that ended well, and the output rate of the run."""
    tokens = int(found.output_tokens[found.ok].sum())
    duration = float(np.nanmax(found.end) - np.min(found.due))
    tpot = found.tpot[np.isfinite(found.tpot)]
    ttft = found.ttft[np.isfinite(found.ttft)]
    return {"ttft": float(np.median(ttft)), "tpot": float(np.median(tpot)), "rate": tokens / duration}


def as_counted(workload: Workload, records: Sequence[RequestRecord]) -> Workload:
    """The workload with the lengths that the server counted."""
    items = [
        item.model_copy(
            update={
                "prompt_tokens": record.prompt_tokens or item.prompt_tokens,
                "output_tokens": max(1, record.output_tokens),
            }
        )
        for item, record in zip(workload.items, records, strict=True)
    ]
    return Workload(tuple(items), users=workload.users)


async def run(url: str, workloads: list[Workload], repeats: int) -> list[list[list[RequestRecord]]]:
    """Send every workload, all of them once before any of them again."""
    model = await first_model(url)
    calibration, _ = await calibrate(Target(url=url, model=model))
    found: list[list[list[RequestRecord]]] = [[] for _ in workloads]
    for turn in range(repeats + 1):  # the first turn of all warms up
        for index, workload in enumerate(workloads):
            if turn == 0 and index:
                break
            # Prompts of its own for every run: else the prefix cache would know them.
            target = Target(url=url, model=model, seed=1 + turn * len(workloads) + index)
            records = (await drive(workload, target, calibration)).records
            if turn:
                found[index].append(records)
    return found


def main() -> None:
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="isles")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config_json = read_json(locate(options.model) / "config.json") or {}
    profile = Profile.load(options.profile) if options.profile else profile_for(config_json)
    cost = FittedCost(profile, "server")
    engine = profile.engine
    # The prefix cache stays on, and prompts share nothing: a hit would need the tokens of the real prompts.
    config = SchedulerConfig(
        num_blocks=8192,
        max_context=engine["max_context"],
        block_size=engine["block_size"],
        max_step_tokens=engine["max_step_tokens"],
        max_running=engine["max_running"],
    )
    cases: list[tuple[str, float, Workload]] = []
    for place, name in enumerate(WORKLOADS):
        full = draw(name, None, 200, 100 + place, engine["max_context"])
        result = simulate(config, full, cost)
        capacity = len(full) / result.duration_s
        for load in LOADS:
            rate = load * capacity
            count = max(12, int(rate * options.seconds))
            cases.append((name, load, draw(name, rate, count, 200 + place, engine["max_context"])))
    with tempfile.TemporaryDirectory() as folder, serving(options.model, EngineSettings(), Path(folder)) as url:
        real = asyncio.run(run(url, [workload for _, _, workload in cases], options.repeats))
        steps, _ = journal_steps((Path(folder) / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    found = []
    for (name, load, workload), runs in zip(cases, real, strict=True):
        twin = simulate(config, as_counted(workload, runs[0]), cost)
        outside = twin.steps.outside / twin.steps.steps
        measured = [metrics(Outcomes.of(records)) for records in runs]
        found.append(Found(name, load, len(workload), measured, metrics(twin.requests), outside))
    show(found, cost)
    show_steps(steps, cost)
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n", encoding="utf-8")


def show(found: list[Found], cost: FittedCost) -> None:
    """A table, and the medians of the deviations."""
    print(f"{cost.name}; step error on held-out steps {cost.loaded.error[0]:.1%}")
    print(
        f"{'workload':<14}{'load':>5}{'n':>5}"
        + "".join(f"{m:>10}{'twin':>8}{'reals':>8}" for m in METRICS)
        + "  outside"
    )
    for each in found:
        cells = "".join(
            f"{np.mean([run[m] for run in each.real]) * (1 if m == 'rate' else 1e3):>10.2f}{each.deviation(m):>+8.1%}"
            f"{each.spread(m):>8.1%}"
            for m in METRICS
        )
        print(f"{each.workload:<14}{each.load:>5.2f}{each.requests:>5}{cells}{each.outside:>9.1%}")
    for metric in METRICS:
        sizes = [abs(each.deviation(metric)) for each in found]
        spreads = [each.spread(metric) for each in found]
        print(f"{metric}: median deviation {np.median(sizes):.1%}, median spread of real runs {np.median(spreads):.1%}")


def show_steps(steps: list[JournalStep], cost: FittedCost) -> None:
    """The cost model alone, apart from queueing: each step that the server took, predicted from its work."""
    print(f"{'sequences':<14}{'steps':>7}{'ms':>9}{'twin over real, in sum':>24}{'median error':>14}")
    for low, high in ((1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 64)):
        chosen = [step for step in steps if low <= step.work.sequences <= high]
        if not chosen:
            continue
        real = np.array([step.ended - step.started for step in chosen])
        twin = np.array([cost.step_s(step.work) for step in chosen])
        error = float(np.median(np.abs(twin / real - 1.0)))
        ratio = twin.sum() / real.sum()
        print(f"{f'{low} to {high}':<14}{len(chosen):>7}{1e3 * real.mean():>9.2f}{ratio:>24.2f}{error:>14.1%}")


if __name__ == "__main__":
    main()
