"""What a planner is asked: which model, on what, for whom, how good it must be, and what it may cost."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from armillary.deployment import Deployment, EngineSettings, checked
from armillary.deployment.explain import flag_name
from armillary.errors import ArmillaryError, Code
from armillary.measure.slo import Slo
from armillary.measure.synthesis import WorkloadSpec
from armillary.twin.hardware import Hardware

MOST_REPLICATIONS = 1000
"""Of the final answer: its intervals are a tenth as wide as those of ten by then."""
_PER = {"s": 1.0, "min": 60.0, "h": 3600.0}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:/\s*(s|min|h))?\s*")


@dataclass(frozen=True)
class Question:
    """What is wanted.

    Attributes:
        deployment: model and engine settings to begin with; the search changes some of them.
        hardware: a name of `armillary.twin.hardware`, or `here`.
        spec: what requests are like, whatever rate it has.
        slo: the service level.
        rate: requests a second that are to be served; None to ask how many can be.
        budget: US dollars an hour that may be spent; None for no limit.
        replications: simulations of the final answer.
        vary: whether steps vary around their mean, where it is known how.
        price: US dollars an hour of one device, instead of its data sheet's; None for that.
        power: watts of one device at full load, likewise.

    Raises ArmillaryError: INVALID_DEPLOYMENT where the deployment has a fleet of which nothing can be planned;
        INVALID_REQUEST for a closed loop.
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
    price: float | None = None
    power: float | None = None

    def __post_init__(self) -> None:
        if self.spec.users is not None:
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                f"users must be left out of a plan, which finds rates at which requests come, given {self.spec.users}; "
                "ask `armillary simulate` what so many users will see",
                "users",
            )
        fleet = self.deployment.fleet
        if fleet is None:
            return
        group = fleet.replicas[0]
        idle = [*(fleet.model_fields_set - _CHOSEN), *(f"replicas.{x}" for x in group.model_fields_set - _CHOSEN)]
        if len(fleet.replicas) > 1:
            idle.append("replicas of several kinds")
        if idle:
            raise ArmillaryError(
                Code.INVALID_DEPLOYMENT,
                f"fleet must leave out what a plan does not weigh, given {', '.join(sorted(idle))}, so ask `armillary "
                "simulate` what such a fleet does",
                "fleet",
            )

    def price_of(self, hardware: Hardware) -> tuple[float, float] | None:
        """US dollars an hour of one device, lowest and highest; None where unknown."""
        return hardware.price_per_h if self.price is None else (self.price, self.price)

    def power_of(self, hardware: Hardware) -> float | None:
        """Watts of one device at full load; None where unknown."""
        return hardware.power_w if self.power is None else self.power

    def as_dict(self) -> dict[str, Any] | None:
        """All of it, for JSON; None where it holds keys that clients are let in by, which belong into no report."""
        if self.deployment.server.api_keys:
            return None
        return {
            "deployment": self.deployment.model_dump(mode="json", exclude_unset=True, exclude={"fleet"}),
            "workload": self.spec.model_dump(mode="json", exclude_unset=True),
            "slo": str(self.slo),
            "changed": sorted(self.changed),
        } | {name: getattr(self, name) for name in _PLAIN}


def _known(name: str) -> str:
    if name not in EngineSettings.model_fields:
        raise ValueError("must name settings of the engine")
    return name


class _Kept(BaseModel):
    """A question, as `Question.as_dict` tells it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    deployment: dict[str, Any]
    workload: dict[str, Any]
    slo: str
    changed: tuple[Annotated[str, AfterValidator(_known)], ...]
    hardware: str
    rate: float | None = Field(gt=0)
    budget: float | None = Field(gt=0)
    replications: int = Field(ge=2, le=MOST_REPLICATIONS)
    vary: bool
    price: float | None = Field(gt=0)
    power: float | None = Field(gt=0)


_PLAIN = ("hardware", "rate", "budget", "replications", "vary", "price", "power")
_CHOSEN = {"replicas", "route", "hardware", "count", "tensor_parallel"}
"""Of a fleet, what a plan chooses, and the hardware, which it is told."""


def again(target: str | None, flags: Mapping[str, Any]) -> tuple[Question, dict[str, Any] | None] | None:
    """The question that a plan.json answers, and what its answer rests on; None where `target` is no such file.

    Args:
        flags: name -> value of what else was asked; None for what was not.

    Raises ArmillaryError: INVALID_REQUEST where the file does not hold its question, and where flags ask another;
        INVALID_DEPLOYMENT where the question was changed to none that can be asked.
    """
    if target is None or Path(target).suffix != ".json":
        return None
    try:
        found = json.loads(Path(target).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # perhaps a config.json, and whoever reads that will say what is wrong with it
    if not isinstance(found, dict) or "armillary_plan" not in found:
        return None
    for name, value in flags.items():
        if value is not None:
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                f"{flag_name(name)} must be left out with a plan.json, which holds what was asked, given {value!r}",
                name,
            )
    kept = found.get("question")
    if not isinstance(kept, dict):
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"plan.json must hold its question to be made again, given {target} without it (where `api_keys` stand in "
            "the deployment it is left out: name an `api_key_file` instead)",
            "model",
        )
    one, basis = checked(_Kept, kept, as_flags=False), found.get("basis")
    question = Question(
        checked(Deployment, one.deployment, as_flags=False),
        spec=checked(WorkloadSpec, one.workload, as_flags=False),
        slo=Slo.parse(one.slo),
        changed=one.changed,
        **{name: getattr(one, name) for name in _PLAIN},
    )
    return question, basis if isinstance(basis, dict) else None


def parse_rate(text: str) -> float:
    """Requests a second: `20/s`, `1200/min`, or a bare number of requests a second.

    Raises ArmillaryError: INVALID_REQUEST.
    """
    return _amount("rate", text, "s", "20/s, 1200/min or 72000/h")


def rate_text(rate: float) -> str:
    """A rate to three figures, for people: 0.0123, 20.5, 1,230."""
    rounded = float(f"{rate:.3g}")
    return f"{rounded:,.0f}" if rounded >= 1000 else f"{rounded:g}"


def parse_budget(text: str) -> float:
    """US dollars an hour: `10/h`, or a bare number.

    Raises ArmillaryError: INVALID_REQUEST.
    """
    return _amount("budget", text, "h", "10/h")


def parse_price(text: str) -> float:
    """US dollars an hour of one device: `0.10/h`, or a bare number.

    Raises ArmillaryError: INVALID_REQUEST.
    """
    return _amount("price", text, "h", "0.10/h")


def _amount(name: str, text: str, unit: str, examples: str) -> float:
    """So much in a unit of time, to the last digit where it was given in that one."""
    found = _AMOUNT.fullmatch(text)
    given = unit if found is None else found[2] or unit
    value = float(found[1]) if found else 0.0
    value = value if given == unit else value * _PER[unit] / _PER[given]
    if not 0 < value < inf:
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"{name} must be an amount above 0, such as {examples}, given {text!r}", name
        )
    return value
