"""Classes of requests with service levels of their own, as one text.

quick 0.7: ttft p95 300ms; slow 0.3: e2e p95 60s
"""

from __future__ import annotations

import math

from armillary.errors import ArmillaryError, Code
from armillary.measure.slo import Slo

_MOST = 1e9
"""Of a share, so that all of them can be added up."""


def parse_classes(text: str) -> list[tuple[str, float, Slo]]:
    """Name, share of the conversations and service level of each class; shares are taken in proportion."""
    found: list[tuple[str, float, Slo]] = []
    for part in text.split(";") if text.strip() else ():
        head, colon, level = part.partition(":")
        words = head.split()
        try:
            share = float(words[1]) if len(words) == 2 else math.nan
        except ValueError:
            share = math.nan
        if not (colon and 0 < share <= _MOST):
            raise _wrong(
                "must be NAME SHARE: LEVEL joined by semicolons, SHARE above 0 and at most "
                f"{_MOST:g}, given {part.strip()!r}"
            )
        if words[0] in {name for name, _, _ in found}:
            raise _wrong(f"must have different names, given {words[0]!r} twice")
        found.append((words[0], share, Slo.parse(level)))
    return found


def _wrong(what: str) -> ArmillaryError:
    return ArmillaryError(Code.INVALID_REQUEST, f"classes {what}", param="slo_classes")
