"""The region that was measured, as ratios: quick to test, and sayable in words.

In logarithms of the five counts of a step, the smallest box whose sides may also run along differences of two counts (a
zone: Dill 1989; Mine, HOSC 2006). It contains the convex hull of the measured steps in those logarithms, is a little
larger, and reads as limits on counts and on their ratios: positions per sequence, context per sequence, pairs per
position.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from armillary.twin.work import StepWork

RATIOS = ((1, 0), (3, 0), (4, 1), (4, 3), (1, 3))
"""Which counts are divided by which: tokens and context by sequences, pairs by tokens and by context, tokens by
context."""
NAMES = ("sequences", "tokens", "rows", "context", "pairs")
SLACK = 1.02
"""How far outside still counts as inside: counts are whole numbers, and the edge of the region is no cliff."""


class Hull:
    """Limits on the counts of a step and on their ratios."""

    def __init__(self, steps: Iterable[Sequence[float]]) -> None:
        rows = [tuple(step) for step in steps]
        if not rows:
            raise ValueError("steps must hold at least one")
        self.counts = tuple((min(r[i] for r in rows), max(r[i] for r in rows)) for i in range(5))
        self.ratios = tuple((min(r[a] / r[b] for r in rows), max(r[a] / r[b] for r in rows)) for a, b in RATIOS)
        self._low = tuple(low / SLACK for low, _ in self.counts)
        self._high = tuple(high * SLACK for _, high in self.counts)
        self._ratio_low = tuple(low / SLACK for low, _ in self.ratios)
        self._ratio_high = tuple(high * SLACK for _, high in self.ratios)

    def holds(self, work: StepWork) -> bool:
        """Whether a step lies inside."""
        sequences, tokens, rows, context, pairs, *_ = work
        low, high = self._low, self._high
        if not (
            low[0] <= sequences <= high[0]
            and low[1] <= tokens <= high[1]
            and rows <= high[2]
            and low[3] <= context <= high[3]
            and low[4] <= pairs <= high[4]
        ):
            return False
        least, most = self._ratio_low, self._ratio_high
        return (
            least[0] * sequences <= tokens <= most[0] * sequences
            and least[1] * sequences <= context <= most[1] * sequences
            and least[2] * tokens <= pairs <= most[2] * tokens
            and least[3] * context <= pairs <= most[3] * context
            and least[4] * context <= tokens <= most[4] * context
        )

    def why_not(self, work: StepWork) -> str | None:
        """The first limit that a step breaks, for people; None where it lies inside."""
        for name, value, (low, high) in zip(NAMES, work, self.counts, strict=False):
            if not low / SLACK <= value <= high * SLACK and not (name == "rows" and value <= high):
                return f"{name} must be from {low} to {high}, given {value}"
        for (a, b), (least, most) in zip(RATIOS, self.ratios, strict=True):
            ratio = work[a] / work[b]
            if not least / SLACK <= ratio <= most * SLACK:
                return f"{NAMES[a]} per {NAMES[b]} must be from {least:.3g} to {most:.3g}, given {ratio:.3g}"
        return None
