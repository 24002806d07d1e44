"""Whether a simulation may be believed: did it settle, and do its totals obey the laws that any run's must?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from armillary.measure.laws import Bound, Law, check, client_totals
from armillary.measure.steady import Steadiness, steadiness
from armillary.twin.fleet_result import FleetResult
from armillary.twin.outcome import FINISHES


@dataclass(frozen=True)
class Audit:
    """What a run was found to be. `laws` are as of `armillary.measure.laws`."""

    steadiness: Steadiness
    laws: tuple[Law | Bound, ...]


def audit(result: FleetResult, users: int | None = None) -> Audit:
    """Judge a simulation, from where on it is judged, as a measured run is.

    What the system counted by itself (`armillary.twin.census`) stands against what became of the requests and what
    executors predicted. Tokens are compared only where every request was answered in full or not let in, and none began
    anew: an engine has generated some of what was cut short or lost.
    """
    run, counts = result.requests, result.counts
    sent = run if not np.isnan(run.due).any() else run.select(~np.isnan(run.due))
    totals = replace(client_totals(sent, result.duration_s, users), area_s=counts.area_s)
    if counts.held_s > 0 and counts.steps:
        totals = replace(
            totals,
            busy_s=counts.working_s,
            steps=counts.steps,
            step_s=counts.step_s / counts.steps,
            servers=counts.held_s / max(result.duration_s, 1e-9),
        )
    if (run.ok | (run.finish == FINISHES.index("refused"))).all() and not result.restarted:
        share = result.duration_s / max(counts.whole_s, 1e-9)
        totals = replace(totals, flows={"output tokens": (share * counts.tokens, share * counts.answered)})
    return Audit(steadiness(sent, users), check(totals))
