"""How well the twin predicts a real server on this machine: workloads that no profile has seen, from idle to overload.

    python -m bench.twin_costs [--model isles] [--profile FILE] [--seconds 5] [--repeats 3] [--json FILE]

Each workload is sent to `armillary serve` by the load client, `--repeats` times at each load and once more by 64 users
in a closed loop, and simulated with the cost model of a profile, with the lengths that the server counted. Loads are
shares of the throughput that the twin itself reaches with 64 users. Printed: medians of TTFT and TPOT and the output
rate, the twin's deviation from the mean of the real runs, and how far these lie apart among themselves, which no
prediction can beat; throughput in the closed loop; and the knee, the rate at which the 90th percentile of TTFT passes
four times its median at the lowest load.

A machine that is shared is faster at one time than at another. Before every run a short closed loop of the profile's
own kind of requests is sent. What its steps took, over what the profile says, is the level of all predictions;
deviations without it are printed too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

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
from armillary.twin.cost import CostModel
from armillary.twin.fitted import FittedCost
from armillary.twin.here import profile_for
from armillary.twin.probe import lengths
from armillary.twin.profile import Profile
from armillary.twin.served import JournalStep, journal_steps, serving
from armillary.twin.simulate import simulate

WORKLOADS = {"chat": (150, 60), "rag": (700, 40), "short": (40, 25), "long answers": (80, 180)}
"""Name -> medians of prompt and output tokens; both lognormal."""
LOADS = (0.3, 0.6, 0.8, 1.0, 1.25)
BELOW = 0.6
"""Loads up to this lie below the knee."""
USERS = 64
"""Of the closed loop."""
BURST_S = 1.2
BURST_USERS = (1, 2, 4, 8, 16)
METRICS = ("ttft", "tpot", "rate")


@dataclass(frozen=True)
class Case:
    """What is sent: a workload at a share of the capacity, or by users (`load` and `rate` None)."""

    name: str
    load: float | None
    rate: float | None
    workload: Workload


@dataclass(frozen=True)
class Found:
    """One case: medians of seconds, output tokens per second, and the 90th percentile of TTFT.

    Attributes:
        real: of each run.
        twin: predicted at the level of the runs.
        plain: predicted at the profile's.
        outside: share of the simulated steps outside of what the profile measured.
    """

    name: str
    load: float | None
    rate: float | None
    requests: int
    real: list[dict[str, float]]
    twin: dict[str, float]
    plain: dict[str, float]
    outside: float

    def mean(self, metric: str) -> float:
        """Of the real runs."""
        return float(np.mean([run[metric] for run in self.real]))

    def deviation(self, metric: str, plain: bool = False) -> float:
        """The twin's over the mean of the real runs, less one."""
        return (self.plain if plain else self.twin)[metric] / self.mean(metric) - 1.0

    def spread(self, metric: str) -> float:
        """Largest over smallest of the real runs, less one."""
        values = [run[metric] for run in self.real]
        return max(values) / min(values) - 1.0


@dataclass(frozen=True)
class Comparison:
    """What a whole run found.

    Attributes:
        level: seconds of steps in the bursts over those predicted.
        error: median error of the profile on means of steps left out of its fit.
        steps: of the server, all.
    """

    found: list[Found]
    level: float
    error: float
    cost: FittedCost
    steps: list[JournalStep]

    def typical(self, metric: str, below: bool, plain: bool = False) -> tuple[float, float]:
        """Medians over the cases: size of the deviation, and spread of the real runs."""
        chosen = [each for each in self.found if each.load is not None and (each.load <= BELOW) == below]
        sizes = [abs(each.deviation(metric, plain)) for each in chosen]
        return float(np.median(sizes)), float(np.median([each.spread(metric) for each in chosen]))

    def closed(self) -> list[Found]:
        """The closed loops."""
        return [each for each in self.found if each.load is None]

    def knees(self, name: str) -> tuple[float | None, float | None, list[float | None]]:
        """Requests per second: the twin's knee, that of the means of the real runs, and that of each of them."""
        rows = [each for each in self.found if each.name == name and each.rate is not None]
        rates = [each.rate or 0.0 for each in rows]
        limit = 4.0 * rows[0].twin["ttft"]
        runs = [[each.real[i]["p90"] for each in rows] for i in range(min(len(each.real) for each in rows))]
        twin = knee(rates, [each.twin["p90"] for each in rows], limit)
        return twin, knee(rates, [each.mean("p90") for each in rows], limit), [knee(rates, r, limit) for r in runs]


def knee(rates: Sequence[float], p90: Sequence[float], limit: float) -> float | None:
    """The rate at which the percentile passes the limit, between the two loads beside it; None where it never does."""
    for (low, before), (high, after) in pairwise(zip(rates, p90, strict=True)):
        if before <= limit < after:
            share = np.log(limit / before) / np.log(after / before)
            return float(low + (high - low) * share)
    return None


def draw(name: str, rate: float | None, count: int, seed: int, context: int) -> Workload:
    """Requests of a workload: Poisson arrivals at `rate`, or users."""
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
    return Workload(tuple(items), users=None if rate else USERS)


def burst(turn: int, cost: CostModel, context: int, seconds: float) -> Workload:
    """A closed loop of requests like those that the profile saw, for about so many seconds."""
    rng, users = Random(turn), BURST_USERS[turn % len(BURST_USERS)]
    items = []
    for index in range(users * 20):
        prompt, output = lengths(rng, context)
        items.append(WorkItem(id=f"burst-{turn}-{index}", prompt_tokens=prompt, output_tokens=output))
    config = SchedulerConfig(num_blocks=8192, max_context=context, max_running=USERS)
    whole = simulate(config, Workload(tuple(items), users=users), cost)
    count = max(users, int(len(items) * min(1.0, seconds / whole.duration_s)))
    return Workload(tuple(items[:count]), users=users)


def metrics(found: Outcomes) -> dict[str, float]:
    """Of the requests that ended well, and the output rate of the run."""
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


async def send(
    url: str, cases: list[Case], bursts: Callable[[int], Workload], repeats: int, progress: Callable[[str], None]
) -> tuple[list[list[list[RequestRecord]]], list[tuple[float, float]]]:
    """Send every case after a burst, all of them once before any of them again.

    Returns the records of every run of each case, and when bursts began and ended, in the server's time.
    """
    model = await first_model(url)
    calibration, _ = await calibrate(Target(url=url, model=model))
    found: list[list[list[RequestRecord]]] = [[] for _ in cases]
    windows = []
    seed = 0
    for turn in range(repeats):
        for index, case in enumerate(cases):
            progress(f"{case.name}, {'closed loop' if case.load is None else f'{case.load:.0%}'}, run {turn + 1}")
            for workload in (bursts(turn * len(cases) + index), case.workload):
                # Prompts of its own for every run: else the prefix cache would know them.
                seed += 1
                began = time.monotonic()
                records = (await drive(workload, Target(url=url, model=model, seed=seed), calibration)).records
                if workload is case.workload:
                    found[index].append(records)
                else:
                    windows.append((began, time.monotonic()))
    return found, windows


def compare(
    model: str,
    profile: Profile,
    settings: EngineSettings,
    names: Sequence[str],
    loads: Sequence[float],
    seconds: float,
    repeats: int,
    progress: Callable[[str], None],
) -> Comparison:
    """Serve, send, simulate."""
    cost = FittedCost(profile, "server")
    engine = profile.engine
    context = int(engine["max_context"])
    # The prefix cache stays on, and prompts share nothing: a hit would need the tokens of the real prompts.
    config = SchedulerConfig(
        num_blocks=8192,
        max_context=context,
        block_size=engine["block_size"],
        max_step_tokens=engine["max_step_tokens"],
        max_running=engine["max_running"],
    )
    cases = []
    for place, name in enumerate(names):
        full = draw(name, None, 200, 100 + place, context)
        capacity = len(full) / simulate(config, full, cost).duration_s
        for load in loads:
            count = max(12, int(load * capacity * seconds))
            workload = draw(name, load * capacity, count, 200 + place, context)
            cases.append(Case(name, load, load * capacity, workload))
        count = max(USERS, int(capacity * seconds))
        cases.append(Case(name, None, None, draw(name, None, count, 300 + place, context)))

    def bursts(turn: int) -> Workload:
        return burst(turn, cost, context, BURST_S * max(1.0, seconds / 8.0))

    with tempfile.TemporaryDirectory() as folder, serving(model, settings, Path(folder)) as url:
        real, windows = asyncio.run(send(url, cases, bursts, repeats, progress))
        steps, _ = journal_steps((Path(folder) / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    inside = [step for step in steps if any(begin <= step.started <= end for begin, end in windows)]
    level = sum(step.ended - step.started for step in inside) / sum(cost.step_s(step.work) for step in inside)
    levelled = FittedCost(profile, "server", slower=level)
    found = []
    for case, runs in zip(cases, real, strict=True):
        counted = as_counted(case.workload, runs[0])
        twin, plain = (simulate(config, counted, each) for each in (levelled, cost))
        measured = [metrics(Outcomes.of(records)) for records in runs]
        outside = twin.steps.outside / twin.steps.steps
        predicted, unlevelled = metrics(twin.requests), metrics(plain.requests)
        found.append(Found(case.name, case.load, case.rate, len(counted), measured, predicted, unlevelled, outside))
    return Comparison(found, level, cost.loaded.error[0], levelled, steps)


def show(comparison: Comparison) -> None:
    """Tables, and the medians of the deviations."""
    print(f"{comparison.cost.name}; held-out error {comparison.error:.1%}; level of the runs {comparison.level:.2f}")
    heads = "".join(f"{metric:>10}{'twin':>8}{'reals':>8}" for metric in METRICS)
    print(f"{'workload':<14}{'load':>6}{'n':>5}{heads}  outside")
    for each in comparison.found:
        cells = "".join(
            f"{each.mean(m) * (1 if m == 'rate' else 1e3):>10.2f}{each.deviation(m):>+8.1%}{each.spread(m):>8.1%}"
            for m in METRICS
        )
        load = "users" if each.load is None else f"{each.load:.2f}"
        print(f"{each.name:<14}{load:>6}{each.requests:>5}{cells}{each.outside:>9.1%}")
    for below, words in ((True, "below the knee"), (False, "near and above it")):
        for metric in METRICS:
            deviation, spread = comparison.typical(metric, below)
            plain, _ = comparison.typical(metric, below, plain=True)
            print(
                f"{words}, {metric}: median deviation {deviation:.1%} ({plain:.1%} at the profile's level), "
                f"median spread of real runs {spread:.1%}"
            )
    for each in comparison.closed():
        print(f"{USERS} users, {each.name}: rate {each.deviation('rate'):+.1%}, reals {each.spread('rate'):.1%} apart")
    for name in dict.fromkeys(each.name for each in comparison.found):
        twin, real, single = comparison.knees(name)
        shown = ", ".join("-" if value is None else f"{value:.2f}" for value in single)
        off = "" if twin is None or real is None else f", {twin / real - 1:+.1%}"
        told = ["never" if value is None else f"{value:.2f} requests/s" for value in (twin, real)]
        print(f"knee, {name}: twin {told[0]}, real {told[1]} ({shown}){off}")
    show_steps(comparison)


def show_steps(comparison: Comparison) -> None:
    """The cost model alone, apart from queueing: each step that the server took, predicted from its work."""
    print(f"{'sequences':<14}{'steps':>7}{'ms':>9}{'twin over real, in sum':>24}")
    for low, high in ((1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 64)):
        chosen = [step for step in comparison.steps if low <= step.work.sequences <= high]
        if chosen:
            real = sum(step.ended - step.started for step in chosen)
            ratio = sum(comparison.cost.step_s(step.work) for step in chosen) / real
            print(f"{f'{low} to {high}':<14}{len(chosen):>7}{1e3 * real / len(chosen):>9.2f}{ratio:>24.2f}")


def main() -> None:
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="isles")
    parser.add_argument(
        "--profile", type=Path, help="a file of `armillary profile`; otherwise the one kept for the model"
    )
    parser.add_argument("--dtype", default="auto", help="as of serve, and as the profile was measured")
    parser.add_argument("--max-step-tokens", type=int, help="likewise")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--loads", nargs="+", type=float, default=list(LOADS))
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run at load 1")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config_json = read_json(locate(options.model) / "config.json") or {}
    profile = Profile.load(options.profile) if options.profile else profile_for(config_json)
    given = {"dtype": options.dtype} | (
        {} if options.max_step_tokens is None else {"max_step_tokens": options.max_step_tokens}
    )
    settings = EngineSettings.model_validate(given)
    names, loads = options.workloads, options.loads
    comparison = compare(
        options.model, profile, settings, names, loads, options.seconds, options.repeats, lambda text: None
    )
    show(comparison)
    if options.json:
        kept = {"profile": profile.name, "begun": profile.begun, "level": comparison.level, "error": comparison.error}
        kept["found"] = [asdict(each) for each in comparison.found]  # type: ignore[assignment]
        options.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
