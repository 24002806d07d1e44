"""What a deployment will do under a workload: several simulations, and how far their answers may be trusted.

Every replication meets other luck (the workload's seed) and, where doubt is wanted, another machine: steps so much
slower or faster as the cost model may be wrong. The intervals are over both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite, isnan, nan
from random import Random

import numpy as np

from armillary.deployment import ReplicaSettings
from armillary.measure.intervals import Interval
from armillary.measure.intervals import replications as over_replications
from armillary.measure.outcomes import Outcomes
from armillary.measure.precision import Precise
from armillary.measure.presets import workload_of
from armillary.measure.slo import Slo
from armillary.measure.steady import kept
from armillary.measure.synthesis import WorkloadSpec
from armillary.twin.analytic import AnalyticCost
from armillary.twin.audit import Audit, audit
from armillary.twin.cost import CostModel, Scaled
from armillary.twin.deployed import TYPICAL, Deployed
from armillary.twin.fleet import simulate_fleet
from armillary.twin.fleet_result import FleetResult
from armillary.twin.gaps import gap_quantile
from armillary.twin.goals import judged
from armillary.twin.member import Build, ReplicaPlan

QUANTILES = (0.5, 0.95, 0.99)
METRICS = ("ttft", "tpot", "itl", "e2e")
MOST = 200
"""Replications that are made to be precise."""


@dataclass(frozen=True)
class Replication:
    """One simulation.

    Attributes:
        factor: what the steps' predicted seconds were multiplied with.
        met: whether the service level held.
        good: share of the requests that met it.
    """

    seed: int
    factor: float
    result: FleetResult
    met: bool
    good: float
    audit: Audit

    @property
    def figures(self) -> dict[str, float]:
        """Name -> value; times in seconds, of what came after the warm-up; nan where the run was unstable.

        Gaps between tokens (itl) are those of the whole run. Rates are of what was answered: in a simulation that began
        with a load under way, while requests came; else over all of it, as of a measured run.
        """
        result, judged = self.result, self.audit.steadiness
        run, counts = result.requests, result.counts
        requests, tokens, seconds = float(run.ok.sum()), float(run.output_tokens.sum()), result.duration_s
        if counts.begins and counts.coming_s > 0:  # what is under way when no more come is none of a steady state
            requests, tokens, seconds = counts.ended, counts.ended_tokens, counts.coming_s
        settled, steps = kept(run, judged), [use.steps for use in result.replicas]
        found = {
            f"{metric} p{quantile * 100:g}": nan
            if not judged.has_percentiles
            else gap_quantile([each.gaps for each in steps], quantile)
            if metric == "itl"
            else _quantile(settled, metric, quantile)
            for metric in METRICS
            for quantile in QUANTILES
        }
        room = sum(use.kv_blocks * use.steps.steps for use in result.replicas)
        devices = sum(use.held_s for use in result.replicas)
        busy = sum(each.busy_s for each in steps)
        return found | {
            "requests/s": requests / max(seconds, 1e-9),
            "output tokens/s": tokens / max(seconds, 1e-9),
            "good share": self.good,
            "busy share": busy / devices if devices else nan,
            "KV mean share": sum(each.blocks for each in steps) / max(1, room),
            "KV peak share": max((use.steps.peak_blocks / use.kv_blocks for use in result.replicas), default=0.0),
            "cached share": float(run.cached_tokens.sum()) / max(1.0, float(run.prompt_tokens.sum())),
        }


@dataclass(frozen=True)
class Forecast:
    """What several replications found.

    Attributes:
        precise: figure -> how precise it was asked to be, and how precise it is; empty where nothing was asked.
        met_share: of the replications, how many met the service level.
        outside: share of the steps outside what the cost models were fitted on.
    """

    replications: tuple[Replication, ...]
    figures: Mapping[str, Interval] = field(default_factory=dict)
    precise: Mapping[str, Precise] = field(default_factory=dict)

    @property
    def met_share(self) -> float:
        return sum(one.met for one in self.replications) / len(self.replications)

    @property
    def outside(self) -> float:
        steps = [use.steps for one in self.replications for use in one.result.replicas]
        return sum(total.outside for total in steps) / max(1, sum(total.steps for total in steps))


def forecast(
    deployed: Deployed,
    spec: WorkloadSpec,
    slo: Slo,
    *,
    replications: int = 5,
    doubt: bool = True,
    until: float = inf,
    precision: float | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Forecast:
    """Simulate a deployment under several drawings of a workload.

    Args:
        replications: how many; with `precision`, how many at least.
        precision: go on until the figures of the service level (without one, p95 of the time to first token and per
            further token) are known to this share of themselves, `MOST` replications were made, or one was unstable.
        doubt: whether steps are so much slower or faster as the cost model may be wrong, drawn for each replication.
        until: seconds after which no request comes and no step begins.
        progress: is called after each replication.
    """
    done: list[Replication] = []
    names = [f"{one.metric} p{one.quantile * 100:g}" for one in slo.objectives] or ["ttft p95", "tpot p95"]
    while True:
        done.append(replicate(deployed, spec, slo, len(done), doubt=doubt, until=until))
        progress()
        if len(done) < replications:
            continue
        found = gathered(done)
        if precision is None:
            return found
        kept = [name for name in names if name in found.figures]
        precise = {name: Precise(found.figures[name], precision, len(done)) for name in kept}
        hopeless = any(isnan(one.interval.value) for one in precise.values())
        if hopeless or len(done) >= MOST or all(one.reached for one in precise.values()):
            return replace(found, precise=precise)


def gathered(done: Sequence[Replication]) -> Forecast:
    """The forecast of replications that were made one by one."""
    columns = [one.figures for one in done]
    figures = {name: over_replications([column[name] for column in columns]) for name in done[0].figures}
    return Forecast(tuple(done), {name: _possible(name, found) for name, found in figures.items()})


def _possible(name: str, found: Interval) -> Interval:
    """Without what the figure cannot be: less than nothing, or of shares more than the whole."""
    if not isfinite(found.low) or not isfinite(found.high):
        return found  # not known, and that is what it says
    most = 1.0 if name.endswith("share") else inf
    return replace(found, low=0.0 if found.low < 0 else found.low, high=most if found.high > most else found.high)


def replicate(
    deployed: Deployed, spec: WorkloadSpec, slo: Slo, number: int, *, doubt: bool = True, until: float = inf
) -> Replication:
    """The replication of a forecast that has this number, from 0 on."""
    seed = spec.seed + number
    workload = workload_of(spec.model_copy(update={"seed": seed}))
    factor = machine(deployed, spec.seed, number) if doubt else 1.0
    result = simulate_fleet(deployed.fleet, scaled(deployed, factor), workload, late=slo.late, seed=seed, until=until)
    met, good = judged(result, slo, workload.slo_classes)
    return Replication(seed, factor, result, met, good, audit(result, workload.users))


def machine(deployed: Deployed, seed: int, number: int) -> float:
    """How much slower the machine of the replication of this number is than predicted."""
    return draw_factor(deployed.kinds[0].cost, Random(f"{seed}/{number}"))


def draw_factor(cost: CostModel, rnd: Random) -> float:
    """So much slower or faster a machine may be than predicted.

    A fitted model's error on left-out steps partly cancels over the steps of a request; that its median is a whole
    machine's error is the careful reading. An analytic model's assumptions give the range: slow, expected, fast.
    """
    if isinstance(cost, AnalyticCost):
        expected = cost.step_s(TYPICAL)
        fast, slow = cost.interval(TYPICAL)
        return rnd.triangular(fast, slow, expected) / expected
    if cost.error is None:
        return 1.0
    return max(0.2, rnd.gauss(1.0, cost.error[0]))


def scaled(deployed: Deployed, factor: float) -> Build:
    if factor == 1.0:
        return deployed.build

    def build(group: ReplicaSettings) -> ReplicaPlan:
        plan = deployed.build(group)
        return replace(plan, cost=Scaled(plan.cost, factor))

    return build


def _quantile(run: Outcomes, metric: str, quantile: float) -> float:
    values = getattr(run, metric)
    values = values[~np.isnan(values)]
    return float(np.quantile(values, quantile)) if len(values) else nan
