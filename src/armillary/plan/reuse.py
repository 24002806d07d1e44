"""How much of what was said before a prefix cache still holds when a conversation goes on.

A cache that evicts what was used longest ago holds what was used in the last so many seconds: those in which the whole
of what is used, each conversation counted once, fills it (the characteristic time of Che, Tung and Wang, "Hierarchical
Web Caching Systems", 2002). Of a conversation that goes on later than that, nothing is found. At a few requests a
second this takes minutes; at hundreds, whoever thinks for 20 s comes back to a cache that has forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.measure.columns import Columns

_HALVINGS = 50


@dataclass(frozen=True)
class Reuse:
    """Turns of conversations, as a cache sees them.

    Attributes:
        context: tokens of each turn with its answer, without what other conversations share.
        shared: tokens that several conversations share, each counted once.
        gap: seconds from each turn to the next of its conversation; inf after the last.
    """

    context: NDArray[np.int64]
    shared: int
    gap: NDArray[np.float64]

    @staticmethod
    def of(columns: Columns, due: NDArray[np.float64]) -> Reuse:
        """Of a workload whose turns stand conversation after conversation.

        Args:
            due: of each turn, on any clock of its conversation.
        """
        history = np.zeros(len(columns), dtype=np.int64) if columns.history is None else columns.history
        opening = np.maximum.accumulate(np.where(history > 0, 0, np.arange(len(columns))))
        context = columns.prompt_tokens + columns.output_tokens - columns.prefix_tokens()[opening]
        shared = 0
        if columns.run is not None and columns.run_tokens is not None and len(columns.run):
            longest = np.zeros(int(columns.run.max()) + 1, dtype=np.int64)
            np.maximum.at(longest, columns.run, columns.run_tokens)
            shared = int(longest.sum())
        return Reuse(context, shared, np.append(np.where(history[1:] > 0, np.diff(due), np.inf), np.inf))

    def kept_s(self, rate: float, memory: float) -> float:
        """Seconds for which a cache keeps what nobody uses.

        Args:
            rate: turns a second.
            memory: tokens that it holds; inf: all.
        """
        room = memory - self.shared
        if room == np.inf:
            return np.inf
        low, high = 0.0, 1.0
        while self._used(rate, high) < room:
            low, high = high, 2 * high
        for _ in range(_HALVINGS if room > 0 else 0):
            middle = (low + high) / 2
            low, high = (middle, high) if self._used(rate, middle) < room else (low, middle)
        return low

    def _used(self, rate: float, seconds: float) -> float:
        """Tokens that are used in so many seconds, each counted once."""
        return rate * float(np.mean(self.context * np.minimum(self.gap, seconds)))
