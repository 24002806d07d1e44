"""What a planner is asked: which model, on what, for whom, how good it must be, and what it may cost."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from armillary.deployment import Deployment
from armillary.errors import ArmillaryError, Code
from armillary.measure.slo import Slo
from armillary.measure.synthesis import WorkloadSpec

_PER = {"s": 1.0, "min": 60.0, "h": 3600.0}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:/\s*(s|min|h))?\s*")


@dataclass(frozen=True)
class Question:
    """What is wanted.

    Attributes:
        deployment: model and engine settings to begin with; the search changes some of them.
        hardware: a name of `armillary.twin.hardware`, or `here`.
        spec: what requests are like; its own rate is taken where `rate` is None and it has one.
        slo: the service level.
        rate: requests a second that are to be served; None to ask how many can be.
        budget: US dollars an hour that may be spent; None for no limit.
        replications: simulations of the final answer.
        vary: whether steps vary around their mean, where it is known how.
    """

    deployment: Deployment
    hardware: str
    spec: WorkloadSpec
    slo: Slo
    rate: float | None = None
    budget: float | None = None
    replications: int = 8
    vary: bool = True
    changed: tuple[str, ...] = field(default=())
    """Engine settings that were given and stay as they are."""


def parse_rate(text: str) -> float:
    """Requests a second: `20/s`, `1200/min`, or a bare number of requests a second.

    Raises ArmillaryError: INVALID_REQUEST.
    """
    return _amount("rate", text, "s", "20/s, 1200/min or 72000/h")


def parse_budget(text: str) -> float:
    """US dollars an hour: `10/h`, or a bare number.

    Raises ArmillaryError: INVALID_REQUEST.
    """
    return 3600.0 * _amount("budget", text, "h", "10/h")


def _amount(name: str, text: str, unit: str, examples: str) -> float:
    """So much a second."""
    found = _AMOUNT.fullmatch(text)
    value = float(found[1]) / _PER[found[2] or unit] if found else 0.0
    if value <= 0:
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"{name} must be an amount above 0, such as {examples}, given {text!r}", name
        )
    return value
