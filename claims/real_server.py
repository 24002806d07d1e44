"""The twin beside a real server on this machine: workloads that no profile has seen, from idle to overload.

Before and after every run bursts of the profile's own kind of requests are sent. What their steps took, over what it
says, tells the level at which that run is predicted.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, cycle, pairwise
from pathlib import Path

import numpy as np

from armillary.core.config import SchedulerConfig
from armillary.deployment.engine import EngineSettings
from armillary.measure.client import calibrate, drive, first_model
from armillary.measure.outcomes import Outcomes
from armillary.measure.punctual import run_punctually
from armillary.measure.record import RequestRecord
from armillary.measure.target import Target
from armillary.measure.workload import WorkItem, Workload
from armillary.twin.cost import CostModel, Scaled
from armillary.twin.crowd import Crowd
from armillary.twin.fitted import FittedCost
from armillary.twin.profile import Profile
from armillary.twin.served import JournalStep, journal_steps, serving
from armillary.twin.simulate import simulate
from armillary.twin.spread import Spread
from claims.levels import AtLevel, Level, levels_between

WORKLOADS = {"chat": (150, 60), "rag": (700, 40), "short": (40, 25), "long answers": (80, 180)}
"""Name -> medians of prompt and output tokens; both lognormal."""
LOADS = (0.3, 0.6, 0.8, 1.0, 1.25)
BELOW = 0.6
"""Loads up to this lie below the knee."""
USERS = 64
"""Of the closed loop; fewer where an engine runs so few at once that most of them would only wait."""
BURST_S = 0.5
"""Of each user count, where a run takes no longer than eight seconds."""
BURST_USERS = (4, 16)
"""Not one: a lone user who asks again at once is unlike what a profile is fitted to."""
SEEDS = 12
"""Simulations of each case."""
OFF = 1.96
"""Times the profile's median error, which is taken for a machine's standard error as in plans: 19 of 20 lie within."""
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
        twin: predicted for each run at its level.
        plain: predicted at the profile's.
        chance: the 90th percentile of TTFT of each simulation at the profile's level.
        machines: on a machine that is as much slower as the profile may be off, and on one that is as much faster.
        levels: of each run.
        outside: share of the simulated steps outside of what the profile measured.
    """

    name: str
    load: float | None
    rate: float | None
    requests: int
    real: list[dict[str, float]]
    twin: list[dict[str, float]]
    plain: dict[str, float]
    chance: list[float]
    machines: tuple[dict[str, float], dict[str, float]]
    levels: list[Level]
    outside: float

    def mean(self, metric: str) -> float:
        """Of the real runs."""
        return _mean(self.real, metric)

    def predicted(self, metric: str) -> float:
        """The mean of what was predicted for them."""
        return _mean(self.twin, metric)

    def deviation(self, metric: str, plain: bool = False) -> float:
        """The twin's mean over that of the real runs, less one."""
        return (self.plain[metric] if plain else self.predicted(metric)) / self.mean(metric) - 1.0

    def spread(self, metric: str) -> float:
        """Largest over smallest of the real runs, less one."""
        values = [run[metric] for run in self.real]
        return max(values) / min(values) - 1.0


@dataclass(frozen=True)
class Knees:
    """Requests a second at which one workload's p90 of TTFT passes its limit; None where it never does.

    Attributes:
        twin: predicted at the levels of the runs.
        plain: predicted at the profile's.
        between: on the slowest and on the fastest machine that the profile's error leaves possible, and further by how
            far means of so few runs differ by chance.
        real: of the means of the real runs.
        runs: of each of them.
    """

    twin: float | None
    plain: float | None
    between: tuple[float | None, float | None]
    real: float | None
    runs: list[float | None]

    @property
    def inside(self) -> bool:
        """Whether the real knee lies where the profile's error and chance leave it possible."""
        low, high = self.between
        return self.real is not None and (low is None or low <= self.real) and (high is None or self.real <= high)


@dataclass(frozen=True)
class Comparison:
    """What a whole run found.

    Attributes:
        error: median error of the profile on means of steps left out of its fit.
        steps: of the server, all.
    """

    found: list[Found]
    error: float
    cost: CostModel
    steps: list[JournalStep]

    def typical(self, metric: str, below: bool, plain: bool = False) -> tuple[float, float]:
        """Medians over the cases: size of the deviation, and spread of the real runs."""
        chosen = [each for each in self.found if each.load is not None and (each.load <= BELOW) == below]
        sizes = [abs(each.deviation(metric, plain)) for each in chosen]
        return float(np.median(sizes)), float(np.median([each.spread(metric) for each in chosen]))

    @property
    def level(self) -> Level:
        """The medians of the runs'."""
        tokens, prompts = np.median([level for each in self.found for level in each.levels], axis=0)
        return Level(float(tokens), float(prompts))

    def closed(self) -> list[Found]:
        """The closed loops."""
        return [each for each in self.found if each.load is None]

    def knees(self, name: str) -> Knees:
        """Of a workload."""
        rows = [each for each in self.found if each.name == name and each.rate is not None]
        rates = [each.rate or 0.0 for each in rows]
        limit = 4.0 * rows[0].predicted("ttft")
        runs = [[each.real[i]["p90"] for each in rows] for i in range(min(len(each.real) for each in rows))]
        slow, fast = (knee(rates, [each.machines[which]["p90"] for each in rows], limit) for which in (0, 1))
        plain = knee(rates, [each.plain["p90"] for each in rows], limit)
        single = [knee(rates, run, limit) for run in zip(*(each.chance for each in rows), strict=True)]
        chance = OFF * float(np.std([one for one in single if one is not None] or [0.0]) / np.sqrt(len(runs)))
        if plain is not None:
            slow = None if slow is None else plain - math.hypot(plain - slow, chance)
            fast = None if fast is None else plain + math.hypot(fast - plain, chance)
        return Knees(
            twin=knee(rates, [each.predicted("p90") for each in rows], limit),
            plain=plain,
            between=(slow, fast),
            real=knee(rates, [each.mean("p90") for each in rows], limit),
            runs=[knee(rates, run, limit) for run in runs],
        )


def knee(rates: Sequence[float], p90: Sequence[float], limit: float) -> float | None:
    """The rate at which the percentile passes the limit, between the two loads beside it; None where it never does."""
    for (low, before), (high, after) in pairwise(zip(rates, p90, strict=True)):
        if before <= limit < after:
            share = np.log(limit / before) / np.log(after / before)
            return float(low + (high - low) * share)
    return None


def _mean(runs: Sequence[dict[str, float]], metric: str) -> float:
    return float(np.mean([run[metric] for run in runs]))


def _means(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {metric: _mean(runs, metric) for metric in runs[0]}


def draw(name: str, rate: float | None, requests: int, seed: int, context: int, users: int = USERS) -> Workload:
    """Requests of a workload: Poisson arrivals at `rate`, or `users`."""
    rng = np.random.default_rng(seed)
    prompt, output = WORKLOADS[name]
    at = 0.0
    items = []
    for index in range(requests):
        at += rng.exponential(1.0 / rate) if rate else 0.0
        tokens = int(np.clip(rng.lognormal(np.log(prompt), 0.6), 2, context // 2))
        wanted = int(np.clip(rng.lognormal(np.log(output), 0.5), 2, context // 4))
        arrival = at if rate else None
        items.append(WorkItem(id=str(index), arrival=arrival, prompt_tokens=tokens, output_tokens=wanted))
    return Workload(tuple(items), users=None if rate else users)


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


def foretold(
    config: SchedulerConfig, workloads: Sequence[Workload], cost: CostModel, spread: Spread | None
) -> tuple[list[dict[str, float]], float]:
    """What the twin says by each seed of how steps vary, of one workload after another; and the share of steps outside
    of the profile."""
    turns = zip(range(SEEDS), cycle(workloads), strict=False)
    runs = [simulate(config, workload, cost, spread=spread, seed=seed) for seed, workload in turns]
    outside = sum(run.steps.outside for run in runs) / sum(run.steps.steps for run in runs)
    return [metrics(run.requests) for run in runs], outside


async def send(
    url: str, cases: list[Case], bursts: Sequence[Workload], repeats: int, progress: Callable[[str], None]
) -> tuple[list[list[list[RequestRecord]]], list[tuple[float, float]]]:
    """Send every case between bursts, all of them once before any of them again.

    Returns the records of every run of each case, and when the bursts before each run and after the last began and
    ended, in the server's time.
    """
    model = await first_model(url)
    calibration, _ = await calibrate(Target(url=url, model=model))
    seeds = count(1)  # prompts of its own for every run: else the prefix cache would know them

    async def sent(workload: Workload) -> list[RequestRecord]:
        return (await drive(workload, Target(url=url, model=model, seed=next(seeds)), calibration)).records

    windows = []

    async def burst() -> None:
        began = time.monotonic()
        for workload in bursts:
            await sent(workload)
        windows.append((began, time.monotonic()))

    found: list[list[list[RequestRecord]]] = [[] for _ in cases]
    for turn in range(repeats):
        for index, case in enumerate(cases):
            progress(f"{case.name}, {'closed loop' if case.load is None else f'{case.load:.0%}'}, run {turn + 1}")
            await burst()
            found[index].append(await sent(case.workload))
    await burst()
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
            some = max(12, int(load * capacity * seconds))
            workload = draw(name, load * capacity, some, 200 + place, context)
            cases.append(Case(name, load, load * capacity, workload))
        users = min(USERS, 2 * config.max_running)
        some = max(users, int(capacity * seconds))
        cases.append(Case(name, None, None, draw(name, None, some, 300 + place, context, users)))

    short = BURST_S * max(1.0, seconds / 8.0)
    bursts = [Crowd(users, cost, context, short).workload(users) for users in BURST_USERS]
    with tempfile.TemporaryDirectory() as folder, serving(model, settings, Path(folder)) as url:
        real, windows = run_punctually(send(url, cases, bursts, repeats, progress))
        steps, _ = journal_steps((Path(folder) / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    levels = levels_between(windows, steps, cost)
    bounds = (1.0 + OFF * cost.loaded.error[0], 1.0 - OFF * cost.loaded.error[0])
    found = []
    for place, (case, runs) in enumerate(zip(cases, real, strict=True)):
        counted = [as_counted(case.workload, records) for records in runs]
        measured = [metrics(Outcomes.of(records)) for records in runs]
        own = levels[place :: len(cases)]
        told = [
            foretold(config, [lengths], AtLevel(cost, level), cost.spread)
            for lengths, level in zip(counted, own, strict=True)
        ]
        plain, _ = foretold(config, counted, cost, cost.spread)
        slow, fast = (_means(foretold(config, counted, Scaled(cost, f, beside=f), cost.spread)[0]) for f in bounds)
        predicted = [_means(each) for each, _ in told]
        chance = [each["p90"] for each in plain]
        found.append(
            Found(
                case.name,
                case.load,
                case.rate,
                len(case.workload),
                measured,
                predicted,
                _means(plain),
                chance,
                (slow, fast),
                own,
                told[0][1],
            )
        )
    return Comparison(found, cost.loaded.error[0], cost, steps)
