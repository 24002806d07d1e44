"""Ends a simulation that is only asked whether a service level is met, once it cannot be met any more."""

from __future__ import annotations

from armillary.measure.slo import Slo


class Watch:
    """Counts requests that miss an objective.

    With n requests and an objective at the percentile q, more than n (1 - q) that came too late leave fewer than the
    share q within the limit, whatever becomes of the others. So a simulation that is watched says `missed` only where
    the whole one would miss. It costs nothing where the level is met: then all is simulated as ever.

    Args:
        slo: without `itl`, which a simulation does not keep.
        requests: that there will be and that count.
        first: number of the first of them; those before it do not count.
    """

    def __init__(self, slo: Slo, requests: int, first: int = 0) -> None:
        self.missed = False
        self._first = first
        self._limits: dict[str, list[tuple[float, float, set[int]]]] = {"ttft": [], "tpot": [], "e2e": []}
        """Metric -> (seconds allowed, how many may be late, those that were)."""
        for objective in slo.objectives:
            allowed = requests * (1 - objective.quantile + 1e-8)
            self._limits[objective.metric].append((objective.limit_s, allowed, set()))

    def began(self, row: int, ttft: float) -> None:
        """A request's first token is known. One that begins anew elsewhere begins later still."""
        self._note(row, "ttft", ttft)

    def ended(self, row: int, tpot: float, e2e: float) -> None:
        """A request was answered in full."""
        self._note(row, "tpot", tpot)
        self._note(row, "e2e", e2e)

    def _note(self, row: int, metric: str, seconds: float) -> None:
        for limit, allowed, late in self._limits[metric]:
            if seconds > limit and row >= self._first:
                late.add(row)
                if len(late) > allowed:
                    self.missed = True
