"""Whether a simulation met a service level. It counts the gaps between tokens and does not keep whose they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import nan

from armillary.errors import ArmillaryError, Code
from armillary.measure.slo import Slo, judge
from armillary.twin.fleet_result import FleetResult
from armillary.twin.gaps import gap_share


def judged(result: FleetResult, slo: Slo, classes: Mapping[str, Slo]) -> tuple[bool, float]:
    """Whether the service level was met, and the share of good requests.

    Goals for gaps (`itl`) are judged over all gaps of the run, those told apart by a hundredth of themselves; a request
    that failed counts as one that is too long. Which requests were good, they do not say.

    Args:
        classes: as of `judge`.

    Raises ArmillaryError: INVALID_REQUEST where a class has a goal for gaps.
    """
    for name, level in classes.items():
        if any(objective.metric == "itl" for objective in level.objectives):
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                "classes must have goals for ttft, tpot or e2e to be simulated, where gaps between tokens are counted "
                f"for all requests together, given {level} for {name}",
                "slo_classes",
            )
    attained, good = judge(result.requests, without_gaps(slo), classes)
    met = all(goal.met for goals in attained.values() for goal in goals)
    return met and _gaps_kept(result, slo), float(good.mean()) if len(good) else nan


def without_gaps(slo: Slo) -> Slo:
    """The objectives that are judged request by request."""
    return Slo(tuple(objective for objective in slo.objectives if objective.metric != "itl"))


def of_means(slo: Slo) -> Slo:
    """The objectives with each for gaps read as one for their mean in a request, which is the weaker one."""
    kept = without_gaps(slo).objectives
    means = tuple(replace(objective, metric="tpot") for objective in slo.objectives if objective.metric == "itl")
    return Slo(kept + means)


def _gaps_kept(result: FleetResult, slo: Slo) -> bool:
    wanted = [objective for objective in slo.objectives if objective.metric == "itl"]
    if not wanted:
        return True
    gaps = [use.steps.gaps for use in result.replicas]
    failed = int((~result.requests.ok).sum())
    return all(gap_share(gaps, one.limit_s, failed) >= one.quantile - 1e-9 for one in wanted)
