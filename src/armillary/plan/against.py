"""What was predicted against what was observed, figure by figure; or one run against another.

A prediction's interval is that of its mean over replications. One further run lies further out: within Student's t of
the replications' spread about that mean, which for n of them is the square root of n + 1 times as wide. Near saturation
a small error of speed is a large one of latency, so look at rates first.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import inf, isnan
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from armillary.errors import ArmillaryError, Code
from armillary.measure.intervals import Interval
from armillary.measure.journal import BEGINS, read_journal
from armillary.measure.observed import lived
from armillary.measure.outcomes import Outcomes
from armillary.measure.report import Report
from armillary.measure.statistics import distribution
from armillary.measure.steady import steadiness
from armillary.plan.trials import SLICE
from armillary.twin.forecast import METRICS, QUANTILES
from armillary.twin.forecast_table import shown

MOST_A_GAP = 1.2
"""Tokens that arrive together, on average, beyond which a client's gaps are others than a prediction's."""
Verdict = Literal["inside", "overlaps", "outside"]


@dataclass(frozen=True)
class Side:
    """One of the two that are compared.

    Attributes:
        name: what its column is called.
        figures: name -> value and where it lies with 95 % confidence; rates of a run are exact.
        notes: what to know of it.
    """

    name: Literal["predicted", "observed"]
    figures: dict[str, Interval]
    notes: tuple[str, ...] = ()

    @property
    def interval(self) -> str:
        """What the column of its intervals is called."""
        return "one run" if self.name == "predicted" else "95 %"


@dataclass(frozen=True)
class Row:
    """One figure of both.

    Attributes:
        deviation: of the second from the first, as a share of the first.
        verdict: the second lies `inside` the first's interval (or deviates no more than is tolerated), only their
            intervals `overlaps`, or it lies `outside`.
    """

    name: str
    first: Interval
    second: Interval
    deviation: float
    verdict: Verdict


def is_journal(path: Path) -> bool:
    """Whether a file begins as journals do.

    Raises ArmillaryError: NOT_FOUND where it cannot be read.
    """
    return _text(path, len(BEGINS)) == BEGINS


def read_side(path: Path) -> Side:
    """What a file says: a prediction (`simulate --json`, plan.json) or an observation (`bench --json`, a journal).

    Raises ArmillaryError: NOT_FOUND where it cannot be read; INVALID_REQUEST where it is none of these.
    """
    text = _text(path)
    if text.startswith(BEGINS):
        return observation(*lived(read_journal(path)[-1]))
    try:
        found = json.loads(text)
        if isinstance(found, dict):
            if "armillary_report" in found:
                return _of_report(Report.model_validate(found))
            if "armillary_plan" in found:
                return _of_plan(_Plan.model_validate(found))
            if "armillary_forecast" in found:
                prediction = _Prediction.model_validate(found)
                return _predicted(prediction.figures, len(prediction.replications))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _refused(path, f"{where}: {first['msg']}") from error
    except ValueError as error:
        raise _refused(path, str(error)) from error
    raise _refused(path, "it is none of these")


def paired(first: Path, second: Path | None) -> tuple[Side, Side]:
    """What two files say, a prediction before an observation.

    Raises ArmillaryError: as `read_side`; INVALID_REQUEST where there is no second.
    """
    one = read_side(first)
    if second is None:
        other = "an observation" if one.name == "predicted" else "a prediction"
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"{first.name} must be compared with {other}, given none; name its file", "other"
        )
    two = read_side(second)
    return (two, one) if one.name == "observed" and two.name == "predicted" else (one, two)


def observation(run: Outcomes, seconds: float, users: int | None = None) -> Side:
    """The figures of a run, named as a forecast's; percentiles of what came after the warm-up, if it settled."""
    found = steadiness(run, users)
    figures: dict[str, Interval] = {}
    notes = [f"the observation is {found}"]
    if found.has_percentiles:
        settled = run.select(run.ok & (run.due >= found.start_s))
        for metric in METRICS:
            if metric == "itl":
                told = None if settled.gaps is None else distribution(settled.gaps, settled.gap_rows())
            else:
                values = getattr(settled, metric)
                told = distribution(values[~np.isnan(values)])
            if told is not None:
                for quantile in QUANTILES:
                    one = getattr(told, f"p{quantile * 100:g}")
                    low, high = -inf if one.low is None else one.low, inf if one.high is None else one.high
                    figures[f"{metric} p{quantile * 100:g}"] = Interval(one.value, low, high)
    seconds = max(seconds, 1e-9)
    for name, value in (
        ("requests/s", float(run.ok.sum()) / seconds),
        ("output tokens/s", float(run.output_tokens.sum()) / seconds),
        ("cached share", float(run.cached_tokens.sum()) / max(1.0, float(run.prompt_tokens.sum()))),
    ):
        figures[name] = Interval(value, value, value)
    return Side("observed", figures, tuple(notes))


def against(first: Side, second: Side, tolerance: float = 0.0) -> list[Row]:
    """The figures that both have.

    Args:
        tolerance: deviation, as a share, up to which a figure is `inside` whatever its interval.

    Raises ArmillaryError: INVALID_REQUEST where they have none in common.
    """
    rows = []
    for name, one in first.figures.items():
        other = second.figures.get(name)
        if other is None or isnan(one.value) or isnan(other.value):
            continue
        deviation = 0.0 if one.value == other.value else other.value / one.value - 1.0 if one.value else inf
        verdict: Verdict = "outside"
        if one.holds(other.value) or abs(deviation) <= tolerance:
            verdict = "inside"
        elif other.low <= one.high and one.low <= other.high:
            verdict = "overlaps"
        rows.append(Row(name, one, other, deviation, verdict))
    if not rows:
        raise ArmillaryError(
            Code.INVALID_REQUEST, "what is compared must have a figure in common, given two without", "other"
        )
    return rows


def lines(rows: list[Row]) -> list[tuple[str, ...]]:
    """The rows as cells: figure, value and interval of each, deviation, verdict."""
    return [
        (
            row.name,
            shown(row.name, row.first.value),
            _range(row.name, row.first),
            shown(row.name, row.second.value),
            _range(row.name, row.second),
            f"{row.deviation:+.1%}" if abs(row.deviation) < 1 else f"{row.deviation:+.0%}",
            row.verdict,
        )
        for row in rows
    ]


def as_dict(first: Side, second: Side, rows: list[Row]) -> dict[str, Any]:
    """Everything, for JSON. Times in seconds."""
    return {
        "rows": [asdict(row) for row in rows],
        "sides": [first.name, second.name],
        "notes": [*first.notes, *second.notes],
        "outside": sum(row.verdict == "outside" for row in rows),
    }


class _Figure(BaseModel):
    value: float | None
    low: float | None
    high: float | None


class _Prediction(BaseModel):
    figures: dict[str, _Figure]
    replications: list[Any] = Field(min_length=1)


class _Design(BaseModel):
    replicas: int


class _Trust(BaseModel):
    replications: int = Field(ge=1)


class _Busiest(BaseModel):
    share_of_the_file_simulated: float | None = None


class _Plan(BaseModel):
    figures: dict[str, _Figure]
    busiest: _Busiest = _Busiest()
    design: _Design
    trust: _Trust


def _predicted(figures: dict[str, _Figure], replications: int) -> Side:
    found = {}
    for name, figure in figures.items():
        if figure.value is not None and figure.high is not None:
            low = figure.value if figure.low is None else figure.low
            found[name] = Interval(figure.value, low, figure.high).of_one(replications)
        elif figure.value is not None:
            found[name] = Interval(figure.value, figure.value, figure.value)
    notes = () if replications > 1 else ("one replication has no interval: predict with more",)
    return Side("predicted", found, notes)


def _of_plan(plan: _Plan) -> Side:
    figures = dict(plan.figures)
    windows = plan.busiest.share_of_the_file_simulated is not None
    if plan.design.replicas > SLICE or windows:  # rates are those of the parts that were simulated
        for name in ("requests/s", "output tokens/s"):
            figures.pop(name, None)
    return _predicted(figures, plan.trust.replications)


def _of_report(report: Report) -> Side:
    users = report.workload.get("users")
    side = observation(Outcomes.of(report.records), report.summary.duration, users if isinstance(users, int) else None)
    if all(record.cached_tokens is None for record in report.records):
        del side.figures["cached share"]  # the server does not tell
    good = [record for record in report.records if record.ok]
    each = sum(record.output_tokens for record in good) / max(1, sum(len(record.gaps) + 1 for record in good))
    if each <= MOST_A_GAP:
        return side
    figures = {name: figure for name, figure in side.figures.items() if not name.startswith("itl ")}
    return Side(side.name, figures, (*side.notes, f"a gap covers {each:.1f} tokens on average: gaps are not compared"))


def _range(name: str, found: Interval) -> str:
    """From where to where, in milliseconds or with a unit."""
    if found.low == found.high:
        return ""
    low, high = shown(name, max(0.0, found.low)), shown(name, found.high) if found.high < inf else ""
    text = f"{low}–{high}" if high else f"from {low}"
    return text.replace(" ms", "") if not text.endswith(" s") else text


def _text(path: Path, most: int = -1) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(most)
    except (OSError, UnicodeDecodeError) as error:
        raise ArmillaryError(
            Code.NOT_FOUND, f"what is compared must be a readable text file, given {str(path)!r}: {error}", "journal"
        ) from error


def _refused(path: Path, why: str) -> ArmillaryError:
    return ArmillaryError(
        Code.INVALID_REQUEST,
        "what is compared must be a journal, a report of `bench --json`, a forecast of `simulate --json` or a "
        f"plan.json, given {str(path)!r}: {why}",
        "journal",
    )
