"""The twin against the real server on this machine, with the server's clients beside it."""

from __future__ import annotations

from armillary.deployment import EngineSettings
from armillary.measure.claims import Claim, Finding, Trial
from armillary.models.locate import locate
from armillary.twin.profile_settings import ProfileSettings
from claims.fidelity import PUBLISHED, RULE, TITLE, VENUE, fidelity
from claims.real_server import LOADS, WORKLOADS

SECONDS = 10.0


def measure(trial: Trial) -> Finding:
    """As `fidelity`, for the bundled model."""
    return fidelity(trial, "isles", locate("isles"), EngineSettings(), ProfileSettings(), list(WORKLOADS), SECONDS)


CLAIM = Claim(
    name="twin_fidelity",
    title=TITLE,
    venue=VENUE,
    published=PUBLISHED,
    compared=(
        "`armillary serve` with the bundled model and a load client on the same cores, and the twin with profiles "
        f"measured in turn with it: {', '.join(WORKLOADS)}, none of which a profile has seen, at {len(LOADS)} shares "
        "of the capacity from 0.3 to 1.25 and in a closed loop."
    ),
    rule=RULE,
    measure=measure,
)
