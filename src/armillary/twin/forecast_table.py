"""A forecast, for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import isfinite, isnan, nan
from typing import Any

from armillary.measure.intervals import Interval
from armillary.twin.analytic import AnalyticCost
from armillary.twin.deployed import Deployed, Kind
from armillary.twin.forecast import Forecast
from armillary.twin.here import measured_on
from armillary.twin.outcome import FINISHES

NAMES = {
    "ttft": "time to first token",
    "tpot": "time per further token",
    "itl": "gap between tokens",
    "e2e": "time to the end",
}


def rows(found: Forecast, recorded: Mapping[str, float] | None = None) -> list[tuple[str, ...]]:
    """(figure, value, interval); with what was `recorded` before the value, where that is given."""
    return [
        (
            named(name),
            *(() if recorded is None else (shown(name, recorded.get(name, nan)),)),
            shown(name, interval.value),
            ranged(name, interval),
        )
        for name, interval in found.figures.items()
    ]


def about(deployed: Deployed, found: Forecast, judged: bool) -> list[str]:
    """What was simulated and how far to trust it, in sentences.

    Args:
        judged: whether there was a service level.
    """
    lines = []
    for kind in deployed.kinds:
        cost, config = kind.cost, kind.config
        lines.append(
            f"{kind.settings.count} x {cost.name}: {config.num_blocks} KV blocks of {config.block_size} "
            f"({kind.why_blocks}), at most {config.max_running} sequences and {config.max_step_tokens} tokens a step"
        )
        if isinstance(cost, AnalyticCost):
            lines += [cost.shape.caveat] if cost.shape.caveat else []
            lines.append("steps are assumed from data sheets: the intervals hold what the assumptions allow")
        elif cost.error is not None:
            median, p95 = cost.error
            lines.append(
                f"steps are fitted to measurements of {measured_on(cost.profile)}; left-out steps were predicted "
                f"within {median:.1%} (median; p95 {p95:.1%})"
            )
            lines.append(_varied(kind))
    if any(not isinstance(kind.cost, AnalyticCost) for kind in deployed.kinds):
        lines.append(f"{found.outside:.1%} of the steps lie outside of what was measured")
    lines += _audited(found)
    requests = sum(len(one.result.requests) for one in found.replications)
    lines += [f"{count / requests:.1%} of the requests {_LOST[why]}" for why, count in _lost(found).items()]
    lines += [
        f"{named(name)} is known to {one.interval.relative:.1%} of itself; {one.wanted:.1%} were asked for"
        if one.reached
        else f"{named(name)} is not known to {one.wanted:.1%} of itself, as was asked, after {one.took} replications"
        for name, one in found.precise.items()
    ]
    count = len(found.replications)
    held = f"; the service level held in {found.met_share:.0%}" if judged else ""
    lines.append(f"{count} replication{'s' if count > 1 else ''}{held}")
    return lines


def _varied(kind: Kind) -> str:
    if kind.spread is None:
        return "single steps take their mean: " + (
            "the profile does not say how they vary" if kind.vary else "they were not to vary"
        )
    agree = kind.spread.agreement(10, 1e-3)
    return f"single steps vary around that as they did under load; deviations agree by {agree:.2f} 10 ms later"


_LOST = {
    "unfinished": "had not ended when the simulation did",
    "refused": "were refused: longer than a sequence may be or than the KV blocks hold, or too many waited",
}


def _lost(found: Forecast) -> dict[str, int]:
    """Why requests were not answered in full -> how many, over all replications."""
    ends = Counter(
        FINISHES[code] or "unfinished" for one in found.replications for code in one.result.requests.finish.tolist()
    )
    return {why: ends[why] for why in _LOST if ends[why]}


def _audited(found: Forecast) -> list[str]:
    """Whether the replications settled, and the laws of the first, and of any that breaks one."""
    verdicts = Counter(one.audit.steadiness.verdict for one in found.replications)
    words = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.items())
    lines = [f"replications judged: {words}"]
    if verdicts["unstable"]:
        lines.append("an unstable replication has no percentiles: they would say how long it was")
    broken = [law for one in found.replications[1:] for law in one.audit.laws if not law.holds()]
    return lines + [str(law) for law in (*found.replications[0].audit.laws, *broken)]


def as_dict(deployed: Deployed, found: Forecast, recorded: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Everything, for JSON. Times in seconds."""
    return {
        **({} if recorded is None else {"recorded": dict(recorded)}),
        "armillary_forecast": 1,
        "figures": {name: {"value": i.value, "low": i.low, "high": i.high} for name, i in found.figures.items()},
        "precision": {
            name: {"wanted": one.wanted, "found": one.interval.relative, "reached": one.reached}
            for name, one in found.precise.items()
        },
        "lost": _lost(found),
        "met_share": found.met_share,
        "outside": found.outside,
        "kinds": [
            {
                "hardware": kind.hardware.name,
                "count": kind.settings.count,
                "role": kind.settings.role,
                "cost": kind.cost.name,
                "provenance": kind.cost.provenance,
                "error": kind.cost.error,
                "measured_on": None if isinstance(kind.cost, AnalyticCost) else measured_on(kind.cost.profile),
                "vary": kind.spread is not None,
                "kv_blocks": kind.config.num_blocks,
            }
            for kind in deployed.kinds
        ],
        "replications": [
            {
                "seed": one.seed,
                "factor": one.factor,
                "met": one.met,
                "good": one.good,
                "steadiness": one.audit.steadiness.verdict,
                "warmup": one.audit.steadiness.warmup,
                "laws": [{"name": law.name, "text": str(law), "holds": law.holds()} for law in one.audit.laws],
                "requests": len(one.result.requests),
                "duration_s": one.result.duration_s,
                "replicas": len(one.result.replicas),
                "restarted": one.result.restarted,
                "steps": sum(use.steps.steps for use in one.result.replicas),
            }
            for one in found.replications
        ],
    }


def named(name: str) -> str:
    """A figure's name, for people."""
    metric, _, rest = name.partition(" ")
    return f"{NAMES[metric]}, {rest}" if metric in NAMES else name


def shown(name: str, value: float) -> str:
    """A figure's value, with its unit."""
    if isnan(value):
        return "–"
    if name.endswith("share"):
        return f"{value:.1%}"
    if name.endswith("/s"):
        return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms"


def ranged(name: str, interval: Interval) -> str:
    """From where to where it lies; empty where that is not known."""
    if not isfinite(interval.low) or not isfinite(interval.high):
        return ""
    return f"{shown(name, max(0.0, interval.low))} to {shown(name, interval.high)}"
