"""Whether a simulation may be believed: did it settle, and do its totals obey the laws that any run's must?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from armillary.measure.laws import Bound, Law, check, client_totals
from armillary.measure.steady import Steadiness, steadiness
from armillary.twin.fleet import FleetResult


@dataclass(frozen=True)
class Audit:
    """What a run was found to be. `laws` are as of `armillary.measure.laws`."""

    steadiness: Steadiness
    laws: tuple[Law | Bound, ...]


def audit(result: FleetResult, users: int | None = None) -> Audit:
    """Judge a simulation as a measured run is judged.

    Tokens are compared with the engines' own count only where every request was answered in full and none began anew:
    an engine has generated some of what was cut short or lost.
    """
    run = result.requests
    sent = run if not np.isnan(run.due).any() else run.select(~np.isnan(run.due))
    totals = client_totals(sent, result.duration_s, users)
    held = sum(use.held_s for use in result.replicas)
    steps = [use.steps for use in result.replicas]
    if held > 0:
        totals = replace(totals, busy_s=sum(step.busy_s for step in steps), servers=held / max(result.duration_s, 1e-9))
    if sent.ok.all() and not result.restarted:
        served, asked = sum(step.rows for step in steps), int(sent.output_tokens.sum())
        totals = replace(totals, flows={"output tokens": (served, asked)})
    return Audit(steadiness(sent, users), check(totals))
