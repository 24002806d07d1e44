"""Turns the records of a run into its figures: latencies, throughput, goodput, and what to doubt about them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from armillary.measure.outcomes import Outcomes
from armillary.measure.record import Outcome, RequestRecord
from armillary.measure.slo import Slo, judge
from armillary.measure.statistics import Distribution, distribution, quantile

_STEADY_MIN = 40
_STEADY_GROWTH = 1.5
_STEADY_Z = 3.0
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


class Steadiness(BaseModel):
    """Whether waiting grew over the run; if it did, percentiles describe the length of the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verdict: str = Field(description="steady, growing, or unknown (too few requests).")
    growth: float | None = Field(default=None, description="Median TTFT of the last quarter over the first quarter's.")
    trend_z: float | None = Field(default=None, description="Kendall's trend of TTFT over time, in standard errors.")


class Summary(BaseModel):
    """The figures of one run. Latencies are seconds and cover the requests that succeeded."""

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
    steadiness: Steadiness
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
) -> Summary:
    """Summary of `records` of a run that took `duration` seconds.

    Args:
        slo: the service level of requests without a class.
        slo_classes: the service levels of classes that requests may name.
    """
    good = [record for record in records if record.ok]
    lateness = distribution([record.lateness for record in records])
    gaps = [(gap, index) for index, record in enumerate(good) for gap in record.gaps]
    seconds = max(duration, 1e-9)
    steadiness = steady(good)
    summary = Summary(
        requests=len(records),
        outcomes=dict(sorted(Counter(record.outcome.value for record in records).items())),
        statuses=dict(sorted(Counter(str(record.status or "none") for record in records).items())),
        duration=duration,
        offered_rate=offered_rate,
        request_rate=len(good) / seconds,
        output_rate=sum(record.output_tokens for record in records) / seconds,
        prompt_rate=sum(record.prompt_tokens or 0 for record in records) / seconds,
        output_tokens=sum(record.output_tokens for record in records),
        prompt_tokens=sum(record.prompt_tokens or 0 for record in records),
        cached_tokens=sum(record.cached_tokens or 0 for record in records),
        peak_outstanding=peak_outstanding(records),
        ttft=distribution([record.ttft for record in good if record.ttft is not None]),
        tpot=distribution([record.tpot for record in good if record.tpot is not None]),
        itl=distribution([gap for gap, _ in gaps], [index for _, index in gaps]),
        e2e=distribution([record.e2e for record in good if record.e2e is not None]),
        worst_gap=distribution([max(record.gaps) for record in good if record.gaps]),
        goodput=_goodput(Outcomes.of(records), slo, slo_classes or {}, seconds),
        steadiness=steadiness,
        lateness=lateness,
        lag=distribution(list(lag)),
        notes=[],
    )
    summary.notes.extend(_notes(records, good, summary))
    return summary


def _goodput(run: Outcomes, slo: Slo, classes: Mapping[str, Slo], seconds: float) -> Goodput:
    attained, good = judge(run, slo, classes)
    stated = [str(slo)] if slo.objectives or not classes else []
    return Goodput(
        slo="; ".join(stated + [f"{name}: {level}" for name, level in classes.items()]),
        objectives=[
            ObjectiveFigures(
                slo_class=name,
                objective=str(found.objective),
                value=found.value if math.isfinite(found.value) else None,
                share=found.share,
                met=found.met,
            )
            for name, figures in attained.items()
            for found in figures
            if not math.isnan(found.share)
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


def steady(records: Sequence[RequestRecord]) -> Steadiness:
    """Whether TTFT grew over the run.

    Growing needs both: a last quarter at least half as slow again as the first, and a trend (Kendall's tau) of
    more than three standard errors. Neither alone is enough: latencies of neighbouring requests depend on each other.
    """
    points = sorted((record.due, record.ttft) for record in records if record.ttft is not None)
    if len(points) < _STEADY_MIN:
        return Steadiness(verdict="unknown")
    values = np.asarray([ttft for _, ttft in points], dtype=np.float64)
    if len(values) > 1000:
        values = values[np.linspace(0, len(values) - 1, 1000).astype(np.int64)]
    n = len(values)
    quarter = n // 4
    growth = quantile(values[-quarter:], 0.5) / max(quantile(values[:quarter], 0.5), 1e-9)
    score = float(np.sign(values[None, :] - values[:, None])[np.triu_indices(n, 1)].sum())
    z = score / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    growing = growth >= _STEADY_GROWTH and z > _STEADY_Z
    return Steadiness(verdict="growing" if growing else "steady", growth=growth, trend_z=z)


def _notes(records: Sequence[RequestRecord], good: Sequence[RequestRecord], summary: Summary) -> list[str]:
    notes = []
    failed = len(records) - len(good)
    if failed:
        kinds = ", ".join(f"{count} {name}" for name, count in summary.outcomes.items() if name != Outcome.OK)
        notes.append(f"{failed} of {len(records)} requests did not succeed ({kinds}); latencies cover the others only.")
        first = next(record for record in records if not record.ok)
        notes.append(f"First failure: request {first.id}, status {first.status or 'none'}: {first.error}")
    if summary.steadiness.verdict == "growing":
        notes.append(
            f"The server did not keep up: the median TTFT of the last quarter is {summary.steadiness.growth:.1f} times "
            "the first quarter's. The percentiles describe how long this run was, not a steady state."
        )
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
