"""What would be different if something were: the answers to "what limits it" and "what should I change"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from armillary.deployment import FleetSettings
from armillary.measure.outcomes import Floats
from armillary.plan.change import Change
from armillary.plan.designs import Design
from armillary.plan.search import Round, Search
from armillary.plan.trials import NOTHING, Trials, sliced
from armillary.twin.cost import CostModel, Scaled
from armillary.twin.member import ReplicaPlan
from armillary.twin.work import StepWork

BASE, ROUND = Round(1, 0.0, 0.02), Round(1, 0.0, 0.06)
"""How exactly the knee of a deployment is found, and that of a changed one. Both meet the same requests."""
MATTERS = 0.04
"""A change of the knee below this share of it is not told from none."""
MUCH = 4.0
"""A knee so many times as high is high enough."""
PREFIX, NO_PREFIX = "a prefix cache", "no prefix cache"
REPLICAS = "replicas"
"""The resource that is taken to add up: n + 1 replicas serve n + 1 times what one does."""


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
        self.steady, self.turns, self.near_s = cost.steady, cost.turns, cost.near_s
        self.first_s = cost.first_s
        self._cost = cost

    def step_s(self, work: StepWork) -> float:
        return self._cost.step_s(work)

    def alone_s(self, work: StepWork) -> float:
        return self._cost.alone_s(work)

    def between_s(self, work: StepWork) -> float:
        return 0.0

    def request_s(self, prompt_tokens: int) -> float:
        return self._cost.request_s(prompt_tokens)

    def held_s(self, prompt_tokens: int) -> float:
        return self._cost.held_s(prompt_tokens)

    def inside(self, work: StepWork) -> bool:
        return self._cost.inside(work)


def changes(design: Design) -> list[Change]:
    """What is worth asking about a design."""
    one, running, tokens = design.replicas, design.max_running, design.max_step_tokens

    found = [
        Change("one more replica", resource=REPLICAS, advice=True, cost=(one + 1) / one),
        Change("a device a quarter faster", _faster, resource="computing", sense=1),
        Change("twice the KV memory", _blocks(2.0), resource="KV memory", sense=1),
        Change("no time between steps", _pauseless, resource="time between steps", sense=1),
        Change(
            f"max_running {2 * running}",
            _limits(2 * running, max(tokens, 2 * running)),
            resource="sequences",
            advice=True,
        ),
        Change(f"max_step_tokens {2 * tokens}", _limits(running, 2 * tokens), resource="tokens a step", advice=True),
        Change(NO_PREFIX, _cached(False), advice=True, sense=-1)
        if design.prefix_cache
        else Change(PREFIX, _cached(True), advice=True, sense=1),
    ]
    if running > 1:
        found.append(Change(f"max_running {running // 2}", _limits(running // 2, tokens), advice=True))
    if tokens // 2 >= running:
        found.append(Change(f"max_step_tokens {tokens // 2}", _limits(running, tokens // 2), advice=True))
    if one > 1:
        for route in ("round_robin", "least_loaded"):
            found.append(Change(f"route {route}", fleet=_routed(route), advice=True, whole=True))
    return found


@dataclass(frozen=True)
class Look:
    """What was seen of a deployment.

    Attributes:
        knee: requests a second.
        ttft_p95, tpot_p95: seconds at the asked rate.
    """

    knee: float
    ttft_p95: float
    tpot_p95: float


def base_of(trials: Trials, design: Design, rate: float, whole: bool, one: float) -> Look:
    """A design as it is: the part of its fleet that is simulated, or one replica under its share of the rate.

    Args:
        one: the knee of one replica, over several workloads.
    """
    seen, rate = _part(design, rate, whole)
    near, stage = one * seen.replicas, ROUND if whole else BASE
    return _look(trials, seen, rate, NOTHING, Search(trials).knee(seen, near, stage).rate or near)


def look(trials: Trials, asked: tuple[Design, float, int, float]) -> Look:
    """A design with one of its `changes`.

    Args:
        asked: the design, the rate, which change, and the knee without it.
    """
    design, rate, number, base = asked
    change = changes(design)[number]
    seen, rate = _part(design, rate, change.whole)
    if change.resource == REPLICAS:  # to each, it is as if less came
        return _look(trials, seen, rate * design.replicas / (design.replicas + 1), change, inf)

    def holds(one: Design, at: float, seed: int) -> bool:
        return trials(one, at, seed, change)

    search = Search(holds)
    better = change.sense >= 0 and search.holds(seen, base * (1 + MATTERS), ROUND)
    if not better and (change.sense > 0 or search.holds(seen, base * (1 - MATTERS), ROUND)):
        return _look(trials, seen, rate, change, base)  # neither better nor worse
    start = base
    if change.name in (PREFIX, NO_PREFIX):
        other = replace(seen.at(1), prefix_cache=not seen.prefix_cache)
        start = base * trials.expected(other) / trials.expected(seen.at(1))
    return _look(trials, seen, rate, change, search.knee(seen, start, ROUND, most=MUCH * base).rate)


def effects(design: Design, bases: dict[bool, Look], looks: Sequence[Look]) -> list[Effect]:
    """What each of the `changes` of a design does, the most useful first.

    Args:
        bases: the design as it is, its fleet (True) and one replica (False).
        looks: of each change.
    """
    listed = []
    for change, seen in zip(changes(design), looks, strict=True):
        base = bases[change.whole]
        factor = change.cost if change.resource == REPLICAS else min(seen.knee / base.knee, MUCH) if base.knee else inf
        ttft, tpot = _over(seen.ttft_p95, base.ttft_p95), _over(seen.tpot_p95, base.tpot_p95)
        listed.append(Effect(change.name, change.resource, change.advice, factor, ttft, tpot, change.cost))
    return sorted(listed, key=lambda effect: -effect.knee / effect.cost)


def _part(design: Design, rate: float, whole: bool) -> tuple[Design, float]:
    return sliced(design, rate) if whole else (design.at(1), rate / design.replicas)


def _look(trials: Trials, design: Design, rate: float, change: Change, knee: float) -> Look:
    """What is seen at a rate."""
    requests = trials.requests(rate / design.replicas) * design.replicas
    run = trials.run(design, rate, trials.question.spec.seed, requests, change).requests
    return Look(knee, _p95(run.ttft), _p95(run.tpot))


def _faster(plan: ReplicaPlan) -> ReplicaPlan:
    return replace(plan, cost=Scaled(plan.cost, 0.8))


def _pauseless(plan: ReplicaPlan) -> ReplicaPlan:
    return replace(plan, cost=Pauseless(plan.cost))


def _cached(kept: bool) -> Callable[[ReplicaPlan], ReplicaPlan]:
    return lambda plan: replace(plan, config=replace(plan.config, prefix_cache=kept))


def _blocks(factor: float) -> Callable[[ReplicaPlan], ReplicaPlan]:
    return lambda plan: replace(plan, config=replace(plan.config, num_blocks=int(factor * plan.config.num_blocks)))


def _limits(running: int, tokens: int) -> Callable[[ReplicaPlan], ReplicaPlan]:
    return lambda plan: replace(plan, config=replace(plan.config, max_running=running, max_step_tokens=tokens))


def _routed(route: str) -> Callable[[FleetSettings], FleetSettings]:
    return lambda fleet: fleet.model_copy(update={"route": route})


def _over(now: float, then: float) -> float:
    return now / then if then > 0 else 1.0


def _p95(values: Floats) -> float:
    values = values[~np.isnan(values)]
    return float(np.quantile(values, 0.95)) if len(values) else 0.0
