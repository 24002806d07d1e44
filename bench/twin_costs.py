"""How well the twin predicts a real server on this machine: four workloads that no profile has seen, at five loads.

    python bench/twin_costs.py [--model isles] [--profile FILE] [--seconds 6] [--repeats 3] [--json FILE]

Each workload is sent to `armillary serve` by the load client, `--repeats` times, and simulated with the cost model of a
profile, with the lengths that the server counted. Loads are shares of the throughput that the twin itself reaches
with 64 users. Printed: medians of TTFT and TPOT and the output rate, the twin's deviation from the mean of the real
runs, and how far the real runs lie apart among themselves, which no prediction can beat; and the knee, the rate at
which the 90th percentile of TTFT passes a limit.

Cores of a shared machine are faster at one time than at another. A watcher beside the profile and beside every run says
how fast (`armillary.measure.pace`), and each run is simulated at its own pace; deviations at the profile's pace are
printed too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from armillary.core.config import SchedulerConfig
from armillary.deployment.engine import EngineSettings
from armillary.measure.client import calibrate, drive, first_model
from armillary.measure.outcomes import Outcomes
from armillary.measure.pace import PaceWatch
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
LOADS = (0.3, 0.6, 0.8, 0.95, 1.1)
BELOW = 0.6
"""Loads up to this lie below the knee."""
LIMIT_S = 0.5
"""Of the 90th percentile of TTFT, for the knee."""
METRICS = ("ttft", "tpot", "rate")


@dataclass(frozen=True)
class Found:
    """One workload at one load: medians of seconds, and output tokens per second."""

    workload: str
    load: float
    requests: int
    real: list[dict[str, float]]
    twin: list[dict[str, float]]
    unpaced: dict[str, float]
    pace: list[float]
    outside: float
    rate: float

    def deviation(self, metric: str, paced: bool = True) -> float:
        """The twin's over the mean of the real runs, less one."""
        twin = float(np.mean([run[metric] for run in self.twin])) if paced else self.unpaced[metric]
        return twin / float(np.mean([run[metric] for run in self.real])) - 1.0

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
    return {
        "ttft": float(np.median(ttft)),
        "tpot": float(np.median(tpot)),
        "rate": tokens / duration,
        "p90": float(np.quantile(ttft, 0.9)),
    }


def knee(rates: Sequence[float], p90: Sequence[float]) -> float | None:
    """The rate at which the percentile passes the limit, between the two runs beside it; None where it never does."""
    for (low, before), (high, after) in pairwise(zip(rates, p90, strict=True)):
        if before <= LIMIT_S < after:
            share = np.log(LIMIT_S / before) / np.log(after / before)
            return float(low + (high - low) * share)
    return None


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


Run = tuple[list[RequestRecord], float | None]


async def run(url: str, workloads: list[Workload], repeats: int) -> list[list[Run]]:
    """Send every workload, all of them once before any of them again."""
    model = await first_model(url)
    calibration, _ = await calibrate(Target(url=url, model=model))
    found: list[list[Run]] = [[] for _ in workloads]
    for turn in range(repeats + 1):  # the first turn of all warms up
        for index, workload in enumerate(workloads):
            if turn == 0 and index:
                break
            # Prompts of its own for every run: else the prefix cache would know them.
            target = Target(url=url, model=model, seed=1 + turn * len(workloads) + index)
            with PaceWatch() as watch:
                records = (await drive(workload, target, calibration)).records
            if turn:
                found[index].append((records, watch.mean_s()))
    return found


def main() -> None:
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="isles")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--repeats", type=int, default=3)
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
    cases: list[tuple[str, float, float, Workload]] = []
    for place, name in enumerate(WORKLOADS):
        full = draw(name, None, 200, 100 + place, engine["max_context"])
        result = simulate(config, full, cost)
        capacity = len(full) / result.duration_s
        for load in LOADS:
            rate = load * capacity
            count = max(12, int(rate * options.seconds))
            cases.append((name, load, rate, draw(name, rate, count, 200 + place, engine["max_context"])))
    with tempfile.TemporaryDirectory() as folder, serving(options.model, EngineSettings(), Path(folder)) as url:
        real = asyncio.run(run(url, [case[-1] for case in cases], options.repeats))
        steps, _ = journal_steps((Path(folder) / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    found = []
    for (name, load, rate, workload), runs in zip(cases, real, strict=True):
        counted = as_counted(workload, runs[0][0])
        plain = simulate(config, counted, cost)
        paced = [simulate(config, counted, FittedCost(profile, "server", pace)) for _, pace in runs]
        found.append(
            Found(
                name,
                load,
                len(workload),
                [metrics(Outcomes.of(records)) for records, _ in runs],
                [metrics(each.requests) for each in paced],
                metrics(plain.requests),
                [(pace or 0.0) / profile.pace.get("server", np.nan) for _, pace in runs],
                plain.steps.outside / plain.steps.steps,
                rate,
            )
        )
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
        + "  outside   pace"
    )
    for each in found:
        cells = "".join(
            f"{np.mean([run[m] for run in each.real]) * (1 if m == 'rate' else 1e3):>10.2f}{each.deviation(m):>+8.1%}"
            f"{each.spread(m):>8.1%}"
            for m in METRICS
        )
        pace = " ".join(f"{value:.2f}" for value in each.pace)
        print(f"{each.workload:<14}{each.load:>5.2f}{each.requests:>5}{cells}{each.outside:>9.1%}   {pace}")
    for words, chosen in (
        ("below the knee", [each for each in found if each.load <= BELOW]),
        ("near and above", [each for each in found if each.load > BELOW]),
    ):
        for metric in METRICS:
            sizes = [abs(each.deviation(metric)) for each in chosen]
            plain = [abs(each.deviation(metric, paced=False)) for each in chosen]
            spreads = [each.spread(metric) for each in chosen]
            print(
                f"{words}, {metric}: median deviation {np.median(sizes):.1%} "
                f"({np.median(plain):.1%} at the profile's pace), median spread of real runs {np.median(spreads):.1%}"
            )
    for name in WORKLOADS:
        rows = [each for each in found if each.workload == name]
        rates = [each.rate for each in rows]
        twin = knee(rates, [float(np.mean([run["p90"] for run in each.twin])) for each in rows])
        mean = knee(rates, [float(np.mean([run["p90"] for run in each.real])) for each in rows])
        single = [knee(rates, [each.real[i]["p90"] for each in rows]) for i in range(len(rows[0].real))]
        shown = ", ".join("-" if value is None else f"{value:.2f}" for value in single)
        off = "" if twin is None or mean is None else f", {twin / mean - 1:+.1%}"
        print(f"knee of {name}: twin {twin or 0:.2f} requests/s, real {mean or 0:.2f} ({shown}){off}")


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
