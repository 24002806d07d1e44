"""How a machine is measured: the options of `armillary profile`."""

from __future__ import annotations

from pydantic import Field

from armillary.deployment.group import Settings

FEWEST = 12
"""Designed steps without which nothing can be fitted."""


class ProfileSettings(Settings):
    """How the machine is measured."""

    seconds: float = Field(
        default=150.0,
        gt=0,
        le=3600,
        description="Seconds to spend on measuring, loading the model not counted. More time gives less noise.",
    )
    points: int = Field(
        default=96, ge=FEWEST, le=400, description="Designed steps to measure, if the time allows that many."
    )
    http: bool = Field(
        default=True,
        description=(
            "Measure a server with clients as well, in a process of its own. Off: predictions are then of an engine "
            "with no HTTP around it."
        ),
    )
