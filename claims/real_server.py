"""The twin beside a real server on this machine: workloads that no profile has seen, from idle to overload.

Profiles and rounds of real runs take turns, and a profile comes last as it came first. What all profiles say on average
is held against what all rounds found: a shared machine is faster at one time than at another, and then neither has more
of its slow hours than the other.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
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
from armillary.twin.profile_settings import ProfileSettings
from armillary.twin.profiling import measure_profile
from armillary.twin.served import WARM_SEED, JournalStep, journal_steps, serving
from armillary.twin.simulate import simulate
from armillary.twin.spread import Spread

WORKLOADS = {"chat": (150, 60), "rag": (700, 40), "short": (40, 25), "long answers": (80, 180)}
"""Name -> medians of prompt and output tokens; both lognormal."""
LOADS = (0.3, 0.6, 0.8, 1.0, 1.25)
BELOW = 0.6
"""Loads up to this lie below the knee."""
USERS = 64
"""Of the closed loop; fewer where an engine runs so few at once that most of them would only wait."""
WARM_S = 10.0
"""Seconds of other requests before each round: a server that has just started takes longer over everything."""
SEEDS = 12
"""Simulations of each case with each profile."""
OFF = 1.96
"""Times the profiles' median error, which is taken for a machine's standard error as in plans: 19 of 20 lie within."""
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
        real: of each round.
        twin: predicted with each profile, of which one was measured before each round and one after the last.
        chance: the 90th percentile of TTFT of each simulation.
        machines: on a machine that is as much slower as the profiles may be off, and on one that is as much faster.
        outside: share of the simulated steps outside of what a profile measured.
    """

    name: str
    load: float | None
    rate: float | None
    requests: int
    real: list[dict[str, float]]
    twin: list[dict[str, float]]
    chance: list[float]
    machines: tuple[dict[str, float], dict[str, float]]
    outside: float

    def mean(self, metric: str) -> float:
        """Of the real runs."""
        return _mean(self.real, metric)

    def predicted(self, metric: str) -> float:
        """Of all profiles."""
        return _mean(self.twin, metric)

    def deviation(self, metric: str) -> float:
        """The twin's mean over that of the real runs, less one."""
        return self.predicted(metric) / self.mean(metric) - 1.0

    def single(self, metric: str) -> list[float]:
        """The same of each profile and the round after it."""
        return [twin[metric] / real[metric] - 1.0 for twin, real in zip(self.twin, self.real, strict=False)]

    def spread(self, metric: str) -> float:
        """Largest over smallest of the real runs, less one."""
        values = [run[metric] for run in self.real]
        return max(values) / min(values) - 1.0


@dataclass(frozen=True)
class Knees:
    """Requests a second at which one workload's p90 of TTFT passes its limit; None where it never does.

    Attributes:
        twin: of the means over all profiles.
        between: on the slowest and on the fastest machine that the profiles' error leaves possible, and further by how
            far means of so few runs differ by chance and by which profile it was.
        real: of the means of the real runs.
        runs: of each of them.
    """

    twin: float | None
    between: tuple[float | None, float | None]
    real: float | None
    runs: list[float | None]

    @property
    def inside(self) -> bool:
        """Whether the real knee lies where the profiles' error and chance leave it possible."""
        low, high = self.between
        if self.twin is None or self.real is None:
            return False
        return (low is None or low <= self.real) and (high is None or self.real <= high)


@dataclass(frozen=True)
class Comparison:
    """What a whole run found.

    Attributes:
        profiles: in the order in which they were measured.
        rounds: the server's steps in each.
    """

    found: list[Found]
    profiles: list[FittedCost]
    rounds: list[list[JournalStep]]

    @property
    def error(self) -> float:
        """Of a profile, on means of steps left out of its fit: the median, and of that the mean over all profiles."""
        return _error(self.profiles)

    def typical(self, metric: str, below: bool) -> tuple[float, float, float]:
        """Medians over the cases: size of the deviation, of that of each profile from the round after it, and spread of
        the real runs."""
        chosen = [each for each in self.found if each.load is not None and (each.load <= BELOW) == below]
        sizes = [abs(each.deviation(metric)) for each in chosen]
        single = np.abs([each.single(metric) for each in chosen])
        return float(np.median(sizes)), float(np.median(single)), float(np.median([c.spread(metric) for c in chosen]))

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
        twin = knee(rates, [each.predicted("p90") for each in rows], limit)
        single = [knee(rates, run, limit) for run in zip(*(each.chance for each in rows), strict=True)]
        chance = OFF * float(np.std([one for one in single if one is not None] or [0.0]) / np.sqrt(len(runs)))
        if twin is not None:
            slow = None if slow is None else twin - math.hypot(twin - slow, chance)
            fast = None if fast is None else twin + math.hypot(fast - twin, chance)
        return Knees(
            twin=twin,
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
    config: SchedulerConfig, workloads: Sequence[Workload], costs: Sequence[tuple[CostModel, Spread | None]], first: int
) -> tuple[list[dict[str, float]], float]:
    """What the twin says by each of `SEEDS` seeds of how steps vary, the first of them given, of one workload and with
    one machine after another; and the share of steps outside of what was measured."""
    turns = zip(range(first, first + SEEDS), cycle(workloads), cycle(costs), strict=False)
    runs = [simulate(config, workload, cost, spread=spread, seed=seed) for seed, workload, (cost, spread) in turns]
    outside = sum(run.steps.outside for run in runs) / sum(run.steps.steps for run in runs)
    return [metrics(run.requests) for run in runs], outside


def _error(profiles: Sequence[FittedCost]) -> float:
    return float(np.mean([cost.loaded.error[0] for cost in profiles]))


async def send(
    url: str, cases: Sequence[Case], warm: Workload, turn: int, progress: Callable[[str], None]
) -> list[list[RequestRecord]]:
    """Send every case once, after what warms the server up, each with prompts of its own: else the prefix cache would
    know them."""
    model = await first_model(url)
    calibration, _ = await calibrate(Target(url=url, model=model))
    await drive(warm, Target(url=url, model=model, seed=WARM_SEED), calibration)
    found = []
    for number, case in enumerate(cases):
        progress(f"{case.name}, {'closed loop' if case.load is None else f'{case.load:.0%}'}, run {turn + 1}")
        target = Target(url=url, model=model, seed=1000 * (turn + 1) + number)
        found.append((await drive(case.workload, target, calibration)).records)
    return found


def serve_round(
    model: str,
    settings: EngineSettings,
    cases: Sequence[Case],
    warm: Workload,
    turn: int,
    progress: Callable[[str], None],
) -> tuple[list[list[RequestRecord]], list[JournalStep]]:
    """All cases, sent once to a server of their own: what their clients saw, and the steps it took."""
    with tempfile.TemporaryDirectory() as folder, serving(model, settings, Path(folder)) as url:
        real = run_punctually(send(url, cases, warm, turn, progress))
        steps, _ = journal_steps((Path(folder) / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    return real, steps


def measured(model: str, folder: Path, engine: EngineSettings, profiling: ProfileSettings) -> Profile:
    """A profile of the model that lies in the folder, which is kept nowhere."""
    with tempfile.TemporaryDirectory() as kept:
        return measure_profile(model, folder, engine, profiling, Path(kept) / "profile.json", lambda *_: None)[0]


def compare(
    model: str,
    profile: Callable[[], Profile],
    settings: EngineSettings,
    names: Sequence[str],
    loads: Sequence[float],
    seconds: float,
    repeats: int,
    progress: Callable[[str], None],
) -> Comparison:
    """Measure, serve, send; then simulate.

    Args:
        profile: measures one; asked for one more than there are rounds (`repeats`).
        seconds: of each run at load 1.
    """

    def fitted(number: int) -> FittedCost:
        progress(f"profile {number + 1} of {repeats + 1}")
        return FittedCost(profile(), "server")

    costs = [fitted(0)]
    engine = costs[0].profile.engine
    # The prefix cache stays on, and prompts share nothing: a hit would need the tokens of the real prompts.
    config = SchedulerConfig(
        num_blocks=8192,
        max_context=int(engine["max_context"]),
        block_size=engine["block_size"],
        max_step_tokens=engine["max_step_tokens"],
        max_running=engine["max_running"],
    )
    cases = planned(config, costs[0], names, loads, seconds)
    warm = Crowd(config.max_running, costs[0], config.max_context, WARM_S).workload(WARM_SEED)
    real: list[list[list[RequestRecord]]] = []
    rounds = []
    for turn in range(repeats):
        records, steps = serve_round(model, settings, cases, warm, turn, progress)
        real.append(records)
        rounds.append(steps)
        costs.append(fitted(turn + 1))
    off = OFF * _error(costs)
    found = []
    for place, case in enumerate(cases):
        runs = [records[place] for records in real]
        counted = [as_counted(case.workload, records) for records in runs]
        told = [foretold(config, counted, [(cost, cost.spread)], SEEDS * i) for i, cost in enumerate(costs)]
        slow, fast = (
            _means(foretold(config, counted, [(Scaled(c, factor, beside=factor), c.spread) for c in costs], 0)[0])
            for factor in (1.0 + off, 1.0 - off)
        )
        found.append(
            Found(
                case.name,
                case.load,
                case.rate,
                len(case.workload),
                real=[metrics(Outcomes.of(records)) for records in runs],
                twin=[_means(each) for each, _ in told],
                chance=[one["p90"] for each, _ in told for one in each],
                machines=(slow, fast),
                outside=float(np.mean([outside for _, outside in told])),
            )
        )
    return Comparison(found, costs, rounds)


def planned(
    config: SchedulerConfig, cost: FittedCost, names: Sequence[str], loads: Sequence[float], seconds: float
) -> list[Case]:
    """What is to be sent: shares of the capacity that the twin itself finds, then a closed loop, of each workload."""
    context, cases = config.max_context, []
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
    return cases
