"""Gaps between the tokens of simulated requests, counted where they lie: a million cost as much memory as a few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import exp, floor, log, nan

PARTS = 100
"""Of a factor e: gaps are told apart by a hundredth of themselves."""


@dataclass(slots=True)
class Gaps:
    """How many gaps were how long."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, seconds: float, count: int = 1) -> None:
        """Note so many gaps of this length."""
        if seconds > 0 and count:
            self.counts[floor(log(seconds) * PARTS)] += count


def gap_quantile(several: Iterable[Gaps], share: float) -> float:
    """The gap that so large a share of those of several do not exceed, within half a hundredth; nan without any."""
    counts: Counter[int] = Counter()
    for one in several:
        counts.update(one.counts)
    wanted, seen = share * counts.total(), 0
    for part in sorted(counts):
        seen += counts[part]
        if seen >= wanted:
            return exp((part + 0.5) / PARTS)
    return nan


def gap_share(several: Iterable[Gaps], limit_s: float, missed: int = 0) -> float:
    """The share of the gaps of several that do not exceed a limit, as `gap_quantile` tells them apart; 1 without any.

    Args:
        missed: further gaps that exceed any.
    """
    within, count = 0, missed
    for one in several:
        for part, number in one.counts.items():
            count += number
            within += number if exp((part + 0.5) / PARTS) <= limit_s else 0
    return within / count if count else 1.0
