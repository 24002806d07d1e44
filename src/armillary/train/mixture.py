"""Which kinds of documents to draw, as the model learns."""

from __future__ import annotations

FLOOR = 0.2
"""A kind that is mastered keeps this share of its weight, so that it is not forgotten."""


def adapt(start: dict[str, float], levels: dict[str, float]) -> dict[str, float]:
    """Weights each kind by what it still gets wrong. A kind without a level is weighted as the others on average.

    Args:
        start: shares at the start of the run.
        levels: share right on held-out tasks, by kind.
    """
    factors = {kind: FLOOR + (1 - FLOOR) * (1 - level) for kind, level in levels.items()}
    average = sum(factors.values()) / len(factors)
    weights = {kind: share * factors.get(kind, average) for kind, share in start.items()}
    total = sum(weights.values())
    return {kind: weight / total for kind, weight in weights.items()}
