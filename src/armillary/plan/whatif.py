"""What would be different if something were: the answers to "what limits it" and "what should I change"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from armillary.deployment import FleetSettings
from armillary.measure.outcomes import Outcomes
from armillary.plan.change import Change
from armillary.plan.designs import Design
from armillary.plan.search import Knee, Round, Search
from armillary.plan.trials import Trials, sliced
from armillary.twin.cost import CostModel, Scaled
from armillary.twin.fleet import FleetResult
from armillary.twin.member import ReplicaPlan
from armillary.twin.work import StepWork

ROUND = Round(0.25, 1, 0.0, 0.03)
"""How exactly the knee of a changed deployment is found."""
MATTERS = 0.04
"""A change of the knee below this share of it is not told from none."""


@dataclass(frozen=True)
class Effect:
    """What a change does.

    Attributes:
        knee: requests a second up to which the service level holds, as a factor of what it was.
        ttft_p95, tpot_p95: seconds at the asked rate, as a factor.
        cost: an hour's, as a factor.
    """

    name: str
    resource: str | None
    advice: bool
    knee: float
    ttft_p95: float
    tpot_p95: float
    cost: float

    @property
    def matters(self) -> bool:
        return abs(self.knee - 1) >= MATTERS


class Pauseless:
    """Another cost model without time between steps."""

    def __init__(self, cost: CostModel) -> None:
        self.name, self.provenance, self.error = cost.name, cost.provenance, cost.error
        self.steady = cost.steady
        self._cost = cost

    def step_s(self, work: StepWork) -> float:
        return self._cost.step_s(work)

    def between_s(self, work: StepWork) -> float:
        return 0.0

    def request_s(self, prompt_tokens: int) -> float:
        return self._cost.request_s(prompt_tokens)

    def inside(self, work: StepWork) -> bool:
        return self._cost.inside(work)


def changes(design: Design) -> list[Change]:
    """What is worth asking about a design."""
    one, running, tokens = design.replicas, design.max_running, design.max_step_tokens

    def more_replicas(fleet: FleetSettings) -> FleetSettings:
        first, *others = fleet.replicas
        return fleet.model_copy(update={"replicas": (first.model_copy(update={"count": first.count + 1}), *others)})

    found = [
        Change("one more replica", fleet=more_replicas, resource="replicas", advice=True, cost=(one + 1) / one),
        Change("a device a quarter faster", lambda p: replace(p, cost=Scaled(p.cost, 0.8)), resource="computing"),
        Change("twice the KV memory", _blocks(2.0), resource="KV memory"),
        Change("no time between steps", lambda p: replace(p, cost=Pauseless(p.cost)), resource="time between steps"),
        Change(
            f"max_running {2 * running}",
            _limits(2 * running, max(tokens, 2 * running)),
            resource="sequences",
            advice=True,
        ),
        Change(f"max_step_tokens {2 * tokens}", _limits(running, 2 * tokens), resource="tokens a step", advice=True),
        Change("no prefix cache", lambda p: replace(p, config=replace(p.config, prefix_cache=False)), advice=True),
    ]
    if running > 1:
        found.append(Change(f"max_running {running // 2}", _limits(running // 2, tokens), advice=True))
    if tokens // 2 >= running:
        found.append(Change(f"max_step_tokens {tokens // 2}", _limits(running, tokens // 2), advice=True))
    if one > 1:
        for route in ("round_robin", "least_loaded"):
            found.append(Change(f"route {route}", fleet=_routed(route), advice=True))
    return found


def effects(trials: Trials, design: Design, rate: float) -> tuple[Knee, list[Effect]]:
    """The knee of a design, and what each change would do, the most useful first."""
    whole, (design, rate) = design, sliced(design, rate)
    base, found = _looked_at(trials, design, rate, Change("nothing"))
    listed = []
    for change in changes(design):
        knee, run = _looked_at(trials, design, rate, change, start=base.rate)
        factor = knee.rate / base.rate if base.rate else np.inf
        cost = change.cost
        if change.resource == "replicas":  # of the whole fleet, not of the part that is simulated
            cost = (whole.replicas + 1) / whole.replicas
            factor *= cost * design.replicas / (design.replicas + 1)
        listed.append(
            Effect(
                change.name, change.resource, change.advice, factor,
                _ratio(run, found, "ttft"), _ratio(run, found, "tpot"), cost,
            )
        )  # fmt: skip
    return base, sorted(listed, key=lambda effect: -effect.knee / effect.cost)


def _looked_at(
    trials: Trials, design: Design, rate: float, change: Change, start: float | None = None
) -> tuple[Knee, FleetResult]:
    def holds(one: Design, at: float, seed: int, length: float) -> bool:
        return trials(one, at, seed, length, change)

    search = Search(holds)
    if start is None:
        knee = search.knee(design, rate, ROUND)
    elif not search.holds(design, start * (1 - MATTERS), ROUND) or search.holds(design, start * (1 + MATTERS), ROUND):
        knee = search.knee(design, start, ROUND)
    else:
        knee = Knee(start, start)  # neither better nor worse
    seed, requests = trials.question.spec.seed, trials.requests(rate / design.replicas, 0.5) * design.replicas
    return knee, trials.run(design, rate, seed, requests, change)


def _blocks(factor: float) -> Callable[[ReplicaPlan], ReplicaPlan]:
    return lambda plan: replace(plan, config=replace(plan.config, num_blocks=int(factor * plan.config.num_blocks)))


def _limits(running: int, tokens: int) -> Callable[[ReplicaPlan], ReplicaPlan]:
    return lambda plan: replace(plan, config=replace(plan.config, max_running=running, max_step_tokens=tokens))


def _routed(route: str) -> Callable[[FleetSettings], FleetSettings]:
    return lambda fleet: fleet.model_copy(update={"route": route})


def _ratio(run: FleetResult, base: FleetResult, metric: str) -> float:
    now, then = (_p95(result.requests, metric) for result in (run, base))
    return now / then if then > 0 else 1.0


def _p95(run: Outcomes, metric: str) -> float:
    values = getattr(run, metric)
    values = values[~np.isnan(values)]
    return float(np.quantile(values, 0.95)) if len(values) else 0.0
