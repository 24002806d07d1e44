"""The figures of a run that an experiment may explain, and which way each is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from armillary.errors import ArmillaryError, Code
from armillary.measure.outcomes import Outcomes
from armillary.measure.slo import Slo
from armillary.measure.steady import steadiness

_LEVELS = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "end-to-end time"}


@dataclass(frozen=True)
class Figure:
    """What a figure is.

    Attributes:
        title: in sentences.
        unit: of its values; empty for shares.
        lower: whether less is better.
        log: whether settings multiply it rather than add to it.
    """

    title: str
    unit: str
    lower: bool
    log: bool

    def shown(self, value: float) -> str:
        """A value with its unit."""
        if not self.unit:
            return f"{value:.1%}"
        if self.unit == "s" and abs(value) < 1:
            return f"{value * 1e3:.3g} ms"
        return f"{value:.4g} {self.unit}"


FIGURES: Mapping[str, Figure] = {
    **{
        f"{name}_{stat}": Figure(f"{'mean' if stat == 'mean' else stat} {title}", "s", True, True)
        for name, title in _LATENCIES.items()
        for stat in ("mean", *_LEVELS)
    },
    "request_rate": Figure("requests answered per second", "requests/s", False, True),
    "output_rate": Figure("output tokens per second", "tokens/s", False, True),
    "failed_share": Figure("share of requests that failed", "", True, False),
    "good_rate": Figure("goodput", "requests/s", False, False),
    "good_share": Figure("share of requests within the service level", "", False, False),
    "outside_share": Figure("share of steps outside what the cost model was fitted on", "", True, False),
    "growth": Figure("growth of the requests under way over the run", "times", True, True),
    "unstable": Figure("share of runs that did not keep up", "", True, False),
}
"""Name -> what it is. `growth` is the mean number of requests under way in a run's second half over its first half's,
and `unstable` whether it never came back (`armillary.measure.steady`)."""


def figures(run: Outcomes, duration_s: float, slo: Slo, users: int | None = None) -> dict[str, float]:
    """All figures of a run; those that it does not have (latencies where nothing succeeded) are left out.

    Requests that failed have no latency; `failed_share` says how many there were.

    Args:
        users: of a closed loop.
    """
    found: dict[str, float] = {}
    for name, values in (("ttft", run.ttft), ("tpot", run.tpot), ("e2e", run.e2e)):
        kept = np.sort(values[~np.isnan(values)])
        if kept.size:
            found[f"{name}_mean"] = float(kept.mean())
            for stat, level in _LEVELS.items():
                found[f"{name}_{stat}"] = float(kept[max(0, int(np.ceil(level * kept.size - 1e-9)) - 1)])
    good = int(run.ok.sum())
    seconds = max(duration_s, 1e-12)
    met = int(slo.good(run).sum())
    found |= {
        "request_rate": good / seconds,
        "output_rate": float(run.output_tokens.sum()) / seconds,
        "failed_share": 1 - good / len(run),
        "good_rate": met / seconds,
        "good_share": met / len(run),
    }
    judged = steadiness(run, users)
    found["unstable"] = float(judged.verdict == "unstable")
    if judged.backlog is not None:
        found["growth"] = judged.backlog.growth
    return found


def figure(name: str) -> Figure:
    """What a figure is.

    Raises:
        ArmillaryError: INVALID_REQUEST with the names that there are.
    """
    found = FIGURES.get(name)
    if found is None:
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"responses must be among {', '.join(FIGURES)}, given {name!r}", param="responses"
        )
    return found
