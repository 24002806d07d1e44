"""Turns the records of a run into its figures: latencies, throughput, goodput, and what to doubt about them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from armillary.measure.laws import Law, check, client_totals
from armillary.measure.outcomes import Floats, Outcomes
from armillary.measure.record import Outcome, RequestRecord
from armillary.measure.slo import Slo, judge
from armillary.measure.statistics import Distribution, distribution
from armillary.measure.steady import FALSE_ALARM, Steadiness, Verdict, kept, steadiness

_LATE_S = 0.010


class ObjectiveFigures(BaseModel):
    """One objective of a service level beside what the run reached."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slo_class: str = Field(description="Whose level it is; empty: of requests without a class.")
    objective: str
    value: float | None = Field(description="The percentile in seconds; None where too many failed for it to exist.")
    share: float = Field(description="Of the values, a failed request counting as a miss, that keep the limit.")
    met: bool


class Goodput(BaseModel):
    """How much of the work met the service level."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slo: str = Field(description="The service level; a class with one of its own is named before it.")
    objectives: list[ObjectiveFigures]
    good: int = Field(description="Requests that succeeded within every limit and their own deadline.")
    share: float = Field(description="Of all requests sent, failed and shed ones included.")
    requests_per_s: float
    tokens_per_s: float = Field(description="Output tokens of good requests.")


class SteadinessFigures(BaseModel):
    """Whether the run settled (`armillary.measure.steady`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verdict: Verdict = Field(description="steady, drifting, unstable, short or batch.")
    text: str
    warmup: int = Field(description="Requests left out of latencies as warm-up.")
    warmup_s: float = Field(description="From when on requests count, in seconds.")
    backlog_growth: float | None = Field(description="Mean of the requests under way, second half over first.")
    backlog_floor: float | None = Field(description="Their lowest in the second half over their median in the first.")
    drift: float | None = Field(description="Growth of TTFT over what was kept, over its mean.")
    drift_chance: float | None = Field(description="Probability of a trend as clear in a run without one.")
    false_alarm: float = Field(default=FALSE_ALARM, description="Share of steady runs that are called drifting.")


class LawFigures(BaseModel):
    """One operational law or bound (`armillary.measure.laws`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    text: str
    left: float
    right: float
    holds: bool


class Summary(BaseModel):
    """The figures of one run. Latencies are seconds and cover the requests that succeeded, after the warm-up.

    An unstable run has no latencies: they would say how long it was.
    """

    model_config = ConfigDict(extra="forbid")

    requests: int
    outcomes: dict[str, int]
    statuses: dict[str, int]
    duration: float
    offered_rate: float | None = Field(description="Requests/s that the workload asked for; None in a closed loop.")
    request_rate: float = Field(description="Requests/s that succeeded.")
    output_rate: float = Field(description="Output tokens/s, of every request.")
    prompt_rate: float = Field(description="Prompt tokens/s, of requests whose prompt the server counted.")
    output_tokens: int
    prompt_tokens: int
    cached_tokens: int
    peak_outstanding: int
    ttft: Distribution | None
    tpot: Distribution | None
    itl: Distribution | None
    e2e: Distribution | None
    worst_gap: Distribution | None = Field(description="The longest gap of each request.")
    goodput: Goodput
    steadiness: SteadinessFigures
    laws: list[LawFigures]
    lateness: Distribution | None = Field(description="How late the client sent requests.")
    lag: Distribution | None = Field(description="How late the client's event loop woke up.")
    notes: list[str]


def summarise(
    records: Sequence[RequestRecord],
    duration: float,
    slo: Slo,
    offered_rate: float | None = None,
    lag: Sequence[float] = (),
    slo_classes: Mapping[str, Slo] | None = None,
    users: int | None = None,
) -> Summary:
    """Summary of `records` of a run that took `duration` seconds.

    Args:
        slo: the service level of requests without a class.
        slo_classes: the service levels of classes that requests may name.
        users: of a closed loop; None: an open loop.
    """
    run = Outcomes.of(records)
    found = steadiness(run, users)
    shown = run.select(run.ok & (run.due >= found.start_s))
    if not found.has_percentiles:
        shown = shown.select(np.zeros(len(shown), dtype=np.bool_))
    rows, gaps = shown.gap_rows(), _given(shown.gaps)
    worst = np.zeros(len(shown))
    np.maximum.at(worst, rows, gaps)
    seconds = max(duration, 1e-9)
    summary = Summary(
        requests=len(records),
        outcomes=dict(sorted(Counter(record.outcome.value for record in records).items())),
        statuses=dict(sorted(Counter(str(record.status or "none") for record in records).items())),
        duration=duration,
        offered_rate=offered_rate,
        request_rate=float(run.ok.sum()) / seconds,
        output_rate=float(run.output_tokens.sum()) / seconds,
        prompt_rate=float(run.prompt_tokens.sum()) / seconds,
        output_tokens=int(run.output_tokens.sum()),
        prompt_tokens=int(run.prompt_tokens.sum()),
        cached_tokens=int(run.cached_tokens.sum()),
        peak_outstanding=peak_outstanding(records),
        ttft=distribution(shown.ttft),
        tpot=distribution(shown.tpot[~np.isnan(shown.tpot)]),
        itl=distribution(gaps, rows),
        e2e=distribution(shown.e2e),
        worst_gap=distribution(worst[np.bincount(rows, minlength=len(shown)) > 0]),
        goodput=_goodput(run, found, slo, slo_classes or {}, seconds),
        steadiness=_figures(found),
        laws=[
            LawFigures(
                name=law.name,
                text=str(law),
                left=law.left if isinstance(law, Law) else law.value,
                right=law.right if isinstance(law, Law) else law.limit,
                holds=law.holds(),
            )
            for law in check(client_totals(run, duration, users))
        ],
        lateness=distribution([record.lateness for record in records]),
        lag=distribution(list(lag)),
        notes=[],
    )
    summary.notes.extend(_notes(records, [record for record in records if record.ok], summary))
    return summary


def _given(gaps: Floats | None) -> Floats:
    return np.zeros(0) if gaps is None else gaps


def _figures(found: Steadiness) -> SteadinessFigures:
    backlog, drift = found.backlog, found.drift
    return SteadinessFigures(
        verdict=found.verdict,
        text=str(found),
        warmup=found.warmup,
        warmup_s=found.start_s,
        backlog_growth=None if backlog is None else backlog.growth,
        backlog_floor=None if backlog is None else backlog.floor,
        drift=None if drift is None else drift.relative,
        drift_chance=None if drift is None else drift.chance,
    )


def _goodput(run: Outcomes, found: Steadiness, slo: Slo, classes: Mapping[str, Slo], seconds: float) -> Goodput:
    """Goodput of all requests, and the service levels of those after the warm-up."""
    _, good = judge(run, slo, classes)
    attained, _ = judge(kept(run, found), slo, classes) if found.has_percentiles else ({}, good)
    stated = [str(slo)] if slo.objectives or not classes else []
    return Goodput(
        slo="; ".join(stated + [f"{name}: {level}" for name, level in classes.items()]),
        objectives=[
            ObjectiveFigures(
                slo_class=name,
                objective=str(reached.objective),
                value=reached.value if math.isfinite(reached.value) else None,
                share=reached.share,
                met=reached.met,
            )
            for name, figures in attained.items()
            for reached in figures
            if not math.isnan(reached.share)
        ],
        good=int(good.sum()),
        share=float(good.sum()) / max(1, len(run)),
        requests_per_s=float(good.sum()) / seconds,
        tokens_per_s=float(run.output_tokens[good].sum()) / seconds,
    )


def peak_outstanding(records: Sequence[RequestRecord]) -> int:
    """The most requests that were sent and not yet answered at one moment."""
    changes = sorted(
        [(record.sent, 1) for record in records] + [(record.end, -1) for record in records if record.end is not None]
    )
    outstanding = peak = 0
    for _, change in changes:
        outstanding += change
        peak = max(peak, outstanding)
    return peak


def _notes(records: Sequence[RequestRecord], good: Sequence[RequestRecord], summary: Summary) -> list[str]:
    notes = []
    failed = len(records) - len(good)
    if failed:
        kinds = ", ".join(f"{count} {name}" for name, count in summary.outcomes.items() if name != Outcome.OK)
        notes.append(f"{failed} of {len(records)} requests did not succeed ({kinds}); latencies cover the others only.")
        first = next(record for record in records if not record.ok)
        notes.append(f"First failure: request {first.id}, status {first.status or 'none'}: {first.error}")
    notes += _steadiness_notes(summary)
    late, lag = summary.lateness, summary.lag
    if (late is not None and late.p99.value > _LATE_S) or (lag is not None and lag.p99.value > _LATE_S):
        worst = max(late.p99.value if late else 0.0, lag.p99.value if lag else 0.0)
        notes.append(
            f"The client itself lagged: it was {worst * 1e3:.0f} ms late at the 99th percentile. Latencies count from "
            "when requests were due, so this lateness is in them; another machine or a lower rate would part the two."
        )
    by_events = sum(record.counted_by == "events" for record in good)
    if by_events:
        notes.append(
            f"The server reported no usage for {by_events} requests; their tokens are counted by arrivals of text."
        )
    arrivals = sum(len(record.gaps) + 1 for record in good)
    tokens = sum(record.output_tokens for record in good)
    if good and tokens > 1.2 * arrivals:
        notes.append(
            f"Text arrived {arrivals} times for {tokens} tokens, so a gap (ITL) covers {tokens / arrivals:.1f} tokens "
            "on average."
        )
    short = sum(0 < record.output_tokens < record.wanted_tokens for record in good)
    if short:
        notes.append(f"{short} answers ended before the wanted number of tokens.")
    if summary.ttft is not None and summary.ttft.count < 100:
        notes.append(f"With {summary.ttft.count} requests the 99th percentile is the slowest one.")
    return notes


def _steadiness_notes(summary: Summary) -> list[str]:
    found, notes = summary.steadiness, []
    if found.verdict == "unstable":
        notes.append(
            f"The run is unstable: {found.backlog_growth or 0.0:.1f} times as many requests were under way in its "
            "second half as in its first, so the server did not keep up. Percentiles would say how long the run was, "
            "and are not given."
        )
    elif found.verdict == "drifting":
        notes.append(
            f"Latencies drifted all through the run: TTFT changed by {found.drift or 0.0:+.0%} of its mean. The "
            "percentiles are those of this run, not of a steady state."
        )
    elif found.verdict == "short":
        notes.append("The run was too short to tell whether it settled; a longer one would.")
    if found.warmup:
        notes.append(
            f"The first {found.warmup} requests, due within {found.warmup_s:.1f} s, were warm-up; latencies leave them "
            "out."
        )
    notes += [f"A law does not hold, so something was not counted: {law.text}" for law in summary.laws if not law.holds]
    return notes
