"""A task that takes as long as it is told to, for processes that know no module of a test."""

from __future__ import annotations

import time

from armillary.plan.trials import Trials


def linger(trials: Trials, seconds: float) -> float:
    """Do nothing for so long."""
    time.sleep(seconds)
    return seconds
