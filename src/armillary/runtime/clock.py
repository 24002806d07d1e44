"""The clock that real requests are served under."""

from __future__ import annotations

import time


class WallClock:
    """Seconds as they pass outside. Monotonic; the origin means nothing."""

    def now(self) -> float:
        return time.monotonic()

    def advance(self, seconds: float) -> None:
        """The wall moves by itself."""
