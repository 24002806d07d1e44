"""Requests that begin anew because the replica that had them failed."""

from __future__ import annotations

from collections import Counter

from armillary.errors import ArmillaryError, Code

MOST = 1000
"""Times that one request may begin anew: where replicas fail sooner than answers end, none ever would."""


class Restarts:
    """How often that happened; `total` counts each request each time."""

    def __init__(self) -> None:
        self.total = 0
        self._of: Counter[str] = Counter()

    def of(self, request_id: str) -> None:
        """It happened to this one.

        Raises ArmillaryError: CANNOT_FIT where that has no end.
        """
        self.total += 1
        self._of[request_id] += 1
        if self._of[request_id] > MOST:
            raise ArmillaryError(
                Code.CANNOT_FIT,
                f"replicas must stay up for long enough that requests end, given one that began {MOST} times; raise "
                "fleet.failures.every_s",
                "failures",
            )
