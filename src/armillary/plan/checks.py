"""What the parameters of a model must be, said in one way."""

from __future__ import annotations

import math

from armillary.errors import ArmillaryError, Code


def positive(name: str, value: float, infinite: bool = False) -> None:
    """Refuse what is not above 0, or not finite unless `infinite` allows it."""
    if not value > 0 or (math.isinf(value) and not infinite):
        raise invalid(name, "must be above 0" + ("" if infinite else " and finite"), value)


def not_negative(name: str, value: float) -> None:
    """Refuse what is below 0 or not finite."""
    if not 0 <= value < math.inf:
        raise invalid(name, "must be 0 or more and finite", value)


def at_least(name: str, value: int, least: int) -> None:
    """Refuse what is not a whole number of at least `least`."""
    if not math.isfinite(value) or value != int(value) or value < least:
        raise invalid(name, f"must be a whole number of at least {least}", value)


def share(name: str, value: float) -> None:
    """Refuse what is not a share from 0 up to, but not including, 1."""
    if not 0 <= value < 1:
        raise invalid(name, "must be at least 0 and below 1", value)


def invalid(name: str, requirement: str, value: object) -> ArmillaryError:
    """The error for a parameter that breaks a requirement."""
    return ArmillaryError(Code.INVALID_REQUEST, f"{name} {requirement}, given {value!r}", param=name)
