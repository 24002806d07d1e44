"""Tasks that take as long as they are told to, or are refused, for processes that know no module of a test."""

from __future__ import annotations

import time

from armillary.errors import ArmillaryError, Code
from armillary.plan.trials import Trials


def linger(trials: Trials, seconds: float) -> float:
    """Do nothing for so long."""
    time.sleep(seconds)
    return seconds


def refuse(trials: Trials, what: int) -> int:
    """Raise an error that says what was given."""
    raise ArmillaryError(Code.CANNOT_FIT, f"nothing fits, given {what}", param="what")
