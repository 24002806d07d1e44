"""What designs cost, and which a budget buys."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from armillary.errors import ArmillaryError, Code
from armillary.plan.designs import Design
from armillary.plan.trials import Trials

_ROUNDING = 1e-9
"""Of a replica, that is not missing where prices were rounded: 0.3 / 0.1 is a little less than 3."""


def dollars(trials: Trials, design: Design) -> float:
    """US dollars an hour of one replica, in the middle of what is asked for it.

    Raises ArmillaryError: where the design is not possible; INVALID_REQUEST where the price is not known.
    """
    hardware = trials.deployed(design).kinds[0].hardware
    price = trials.question.price_of(hardware)
    if price is None:
        raise unpriced(hardware.name)
    return sum(price) / 2 * design.devices


def affordable(trials: Trials, design: Design) -> int:
    """How many replicas the budget buys.

    Raises ArmillaryError: as `dollars`.
    """
    return int((trials.question.budget or inf) / dollars(trials, design) + _ROUNDING)


def within(trials: Trials, designs: Sequence[Design]) -> list[Design]:
    """Those of which the budget buys a replica, if there is one, and those that are not possible, which say so
    themselves.

    Raises ArmillaryError: CANNOT_FIT where it buys none; INVALID_REQUEST where the price is not known.
    """
    if trials.question.budget is None:
        return list(designs)
    dear: dict[Design, float] = {}
    possible = 0
    for design in designs:
        try:
            trials.deployed(design)
        except ArmillaryError:
            continue
        possible += 1
        if affordable(trials, design) < 1:
            dear[design] = dollars(trials, design)
    if possible and possible == len(dear):
        raise ArmillaryError(
            Code.CANNOT_FIT,
            f"budget must be at least the price of one replica, {min(dear.values()):.2f} dollars an hour, given "
            f"{trials.question.budget:g}",
            "budget",
        )
    return [design for design in designs if design not in dear]


def unpriced(name: str) -> ArmillaryError:
    """What is said of hardware without a price."""
    return ArmillaryError(
        Code.INVALID_REQUEST, f"budget must go with hardware whose price is known, given {name}; give --price", "budget"
    )
