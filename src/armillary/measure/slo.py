"""Service levels: what share of the requests must be how quick, written as one short text.

    ttft p95 500ms, tpot p95 50ms

says that 95 % of the requests must have their first token within half a second, and 95 % must need at most 50 ms for
each further token. A request that failed or was shed misses every objective.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from armillary.errors import ArmillaryError, Code
from armillary.measure.outcomes import Floats, Outcomes

Metric = Literal["ttft", "tpot", "itl", "e2e"]

_UNITS = {"us": Decimal("1e-6"), "ms": Decimal("1e-3"), "s": Decimal(1), "min": Decimal(60)}
_OBJECTIVE = re.compile(r"(\w+)\s+p(\d+(?:\.\d+)?)\s+(\d+(?:\.\d+)?)\s*(us|ms|s|min)")
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Objective:
    """At least the share `quantile` of a metric's values lie at or below `limit_s` seconds.

    `ttft`, `e2e` and `tpot` (mean seconds per token after the first) have one value a request; `itl` has one for each
    gap between two tokens.
    """

    metric: Metric
    quantile: float
    limit_s: float

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            raise _refused(f"must name one of {', '.join(get_args(Metric))}, given {self.metric!r}")
        if not 0 < self.quantile < 1:
            raise _refused(f"must ask for a percentile between 0 and 100, given p{self.quantile * 100:g}")
        if not (self.limit_s > 0 and math.isfinite(self.limit_s)):
            raise _refused(f"must allow a time above 0, given {self.limit_s:g} s")

    def __str__(self) -> str:
        if self.limit_s < 10:
            return f"{self.metric} p{self.quantile * 100:g} {self.limit_s * 1e3:.12g}ms"
        return f"{self.metric} p{self.quantile * 100:g} {self.limit_s:.12g}s"


@dataclass(frozen=True)
class Attainment:
    """One objective beside what a run reached.

    Attributes:
        value: the percentile, in seconds; infinite where so many requests failed that it has none; NaN where the run
            has no such values.
        share: of the values (a failed request counts as one that misses), how many keep the limit.
    """

    objective: Objective
    value: float
    share: float

    @property
    def met(self) -> bool:
        """Whether the objective was reached. Nothing to judge (no values) is not a miss."""
        return math.isnan(self.share) or self.share >= self.objective.quantile - _ROUNDING


@dataclass(frozen=True)
class Slo:
    """A service level: all of its objectives together. One without objectives is met by all that succeeds."""

    objectives: tuple[Objective, ...] = ()

    @staticmethod
    def parse(text: str) -> Slo:
        """Read `METRIC pNN TIME, ...`; whatever does not fit is an error that shows what would."""
        objectives = []
        for part in text.split(","):
            found = _OBJECTIVE.fullmatch(part.strip().lower())
            if found is None:
                raise _refused(
                    f"must be objectives METRIC pNN TIME joined by commas, METRIC one of {', '.join(get_args(Metric))} "
                    "and TIME in us, ms, s or min, as in 'ttft p95 500ms, tpot p95 50ms', "
                    f"given {part.strip()!r}"
                )
            metric, percent, number, unit = found.groups()
            level, limit = float(Decimal(percent) / 100), float(Decimal(number) * _UNITS[unit])
            objectives.append(Objective(metric, level, limit))  # type: ignore[arg-type]
        named = [(objective.metric, objective.quantile) for objective in objectives]
        if len(set(named)) < len(named):
            raise _refused(f"must state each percentile of a metric once, given {text!r}")
        return Slo(tuple(objectives))

    def __str__(self) -> str:
        return ", ".join(str(objective) for objective in self.objectives) or "none stated"

    def attained(self, run: Outcomes) -> tuple[Attainment, ...]:
        """Each objective beside what `run` reached.

        Raises:
            ArmillaryError: an `itl` objective, and the run did not keep its gaps.
        """
        failed = int((~run.ok).sum())
        found = []
        for objective in self.objectives:
            values = _values(run, objective.metric)
            values = values[~np.isnan(values)]
            count = len(values) + failed
            if not count:
                found.append(Attainment(objective, math.nan, math.nan))
                continue
            rank = math.ceil(objective.quantile * count - _ROUNDING)
            value = float(np.partition(values, rank - 1)[rank - 1]) if rank <= len(values) else math.inf
            found.append(Attainment(objective, value, int((values <= objective.limit_s).sum()) / count))
        return tuple(found)

    def met(self, run: Outcomes) -> bool:
        """Whether `run` reached every objective."""
        return all(attainment.met for attainment in self.attained(run))

    def late(self, ttft: float, tpot: float) -> bool:
        """Whether one request that succeeded missed a limit on its time to first token or per further token."""
        found = {"ttft": ttft, "tpot": tpot}
        return any(found.get(o.metric, 0.0) > o.limit_s for o in self.objectives)

    def good(self, run: Outcomes) -> NDArray[np.bool_]:
        """Of each request, whether it succeeded within every limit and its own deadline: what goodput counts.

        Where a metric has limits at several percentiles, the one at the highest counts. For `itl` the request's own
        gaps are judged as the objective judges all of them. A request of one token has neither TPOT nor gaps and
        keeps any limit on them.
        """
        good = run.ok.copy()
        highest = {o.metric: o for o in sorted(self.objectives, key=lambda o: o.quantile)}
        for objective in highest.values():
            if objective.metric == "itl":
                over = _values(run, "itl") > objective.limit_s
                counts = np.bincount(run.gap_rows(), minlength=len(run))
                late = np.bincount(run.gap_rows(), weights=over, minlength=len(run))
                good &= late <= (1 - objective.quantile) * counts + _ROUNDING
            else:
                values = _values(run, objective.metric)
                good &= np.isnan(values) | (values <= objective.limit_s)
        if run.deadline is not None:
            good &= np.isnan(run.deadline) | (run.e2e <= run.deadline)
        return good


def judge(
    run: Outcomes, default: Slo, classes: Mapping[str, Slo]
) -> tuple[dict[str, tuple[Attainment, ...]], NDArray[np.bool_]]:
    """Attainment by class, and which requests were good, where requests may be of classes with levels of their own.

    Args:
        default: for requests without a class and of classes that `classes` does not hold.
        classes: class -> its service level.

    Returns: class (`""`: those that the default judges) -> attainment, for the classes present; and the mask of good
        requests in the run's order.
    """
    good = np.zeros(len(run), dtype=np.bool_)
    rest = np.ones(len(run), dtype=np.bool_)
    found: dict[str, tuple[Attainment, ...]] = {}
    for name, slo in classes.items():
        if run.slo_class is None or name not in run.slo_classes:
            continue
        members = run.slo_class == run.slo_classes.index(name)
        rest &= ~members
        part = run.select(members)
        good[members] = slo.good(part)
        found[name] = slo.attained(part)
    if rest.any():
        part = run.select(rest)
        good[rest] = default.good(part)
        found[""] = default.attained(part)
    return found, good


def _values(run: Outcomes, metric: Metric) -> Floats:
    if metric == "ttft":
        return run.ttft
    if metric == "tpot":
        return run.tpot
    if metric == "e2e":
        return run.e2e
    if run.gaps is None:
        raise ArmillaryError(
            Code.INVALID_REQUEST, "itl must be judged on a run that kept its gaps, given one without", param="slo"
        )
    return run.gaps


def _refused(what: str) -> ArmillaryError:
    return ArmillaryError(Code.INVALID_REQUEST, f"a service level {what}", param="slo")
