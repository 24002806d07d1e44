"""From measured steps to sums of parts: physics first, and more only where left-out steps ask for it.

A step's seconds are a sum of parts that cannot be negative: a fixed part, one for each sequence, position computed, row
sampled, position of context read and pair attended. The coefficients are the non-negative ones with the least squared
relative error (Lawson and Hanson 1974, by scipy), large errors counting less than their square (Huber 1964). Where
sequences or positions cost less beyond some number of them (weights read once for several, tiles of rows, threads that
wait for each other), a part for those up to that number may join, but only one that makes the steps that were
left out of the fit come out better. All parts grow with the work, so that predictions do too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from armillary.twin.work import StepWork

Floats = npt.NDArray[np.float64]
PARTS = ("step", "sequence", "token", "row", "context", "pair")
KNEES = (2, 4, 8, 16, 32, 64, 128)
"""Numbers of sequences or positions up to which they may cost something of their own."""
WORTH = 0.97
"""A further part must bring the error of left-out steps down to this share of what it was."""
MOST_KNEES = 3
_EXACT = 1e-4
"""No clock tells more: with errors below this, nothing is asked for."""
_FAR = 3.0
"""Deviations beyond this many typical ones count as that many."""


@dataclass(frozen=True, slots=True)
class Knee:
    """A part for the first `limit` sequences (column 0 of a step's work) or positions (column 1)."""

    column: int
    limit: int

    @property
    def name(self) -> str:
        return f"{PARTS[1 + self.column]}, first {self.limit}"


@dataclass(frozen=True, slots=True)
class Sum:
    """Seconds as a sum of parts.

    Attributes:
        parts: seconds of each of `PARTS`.
        knees: further parts.
    """

    parts: tuple[float, ...]
    knees: tuple[tuple[Knee, float], ...] = ()

    def times(self, factor: float) -> Sum:
        """Every part so many times."""
        return Sum(tuple(factor * v for v in self.parts), tuple((knee, factor * v) for knee, v in self.knees))

    def plus(self, other: Sum) -> Sum:
        """Both."""
        knees = dict(self.knees)
        for knee, value in other.knees:
            knees[knee] = knees.get(knee, 0.0) + value
        return Sum(tuple(a + b for a, b in zip(self.parts, other.parts, strict=True)), tuple(knees.items()))

    def of(self, work: StepWork) -> float:
        """Seconds for a step; copies are not considered."""
        sequences, tokens, rows, context, pairs, _ = work
        step, sequence, token, row, per_context, pair = self.parts
        seconds = step + sequence * sequences + token * tokens + row * rows + per_context * context + pair * pairs
        for knee, value in self.knees:
            count = tokens if knee.column else sequences
            seconds += value * (count if count < knee.limit else knee.limit)
        return seconds

    def over(self, work: Floats) -> Floats:
        """Seconds for many steps: work [N, 5] -> [N]."""
        found: Floats = _physics(work) @ np.array(self.parts)
        for knee, value in self.knees:
            found += value * np.minimum(work[:, knee.column], knee.limit)
        return found


ZERO = Sum((0.0,) * len(PARTS))


@dataclass(frozen=True, slots=True)
class Fit:
    """A sum, and how far it is off.

    Attributes:
        errors: relative errors, each step predicted by a fit without it (or without its fold).
        plain: the same without any knee, for comparison.
    """

    sum: Sum
    errors: tuple[float, ...] = ()
    plain: tuple[float, ...] = field(default=(), repr=False)

    @property
    def error(self) -> tuple[float, float]:
        """Median and 95th percentile of the size of the relative error."""
        sizes = np.abs(self.errors)
        return float(np.median(sizes)), float(np.quantile(sizes, 0.95))


def fit_designed(work: Floats, seconds: Floats) -> Fit:
    """Designed steps, each left out in turn: work [N, 5], seconds [N]."""
    knees, errors, plain = _grown(_physics(work), work, seconds, len(work))
    found = _solve(_with(_physics(work), work, knees), seconds)
    return Fit(_sum(found[: len(PARTS)], knees, found[len(PARTS) :]), tuple(errors.tolist()), tuple(plain.tolist()))


def fit_loaded(work: Floats, seconds: Floats, alone: Sum) -> Fit:
    """Steps as they came under load: designed ones, scaled, and more for the step, each sequence and each position.

    Many of them vary for reasons that no count of theirs knows; the level is that of their mean, because what a
    client feels is the sum of many.
    """
    base = np.column_stack([alone.over(work), np.ones(len(work)), work[:, 0], work[:, 1]])
    knees, _, plain = _grown(base, work, seconds, 5)
    features = _with(base, work, knees)
    errors = _left_out(features, seconds, 5, level=True)
    scale, step, sequence, token, *more = (_solve(features, seconds) * _level(features, seconds)).tolist()
    added = _sum(np.array([step, sequence, token, 0.0, 0.0, 0.0]), knees, np.array(more))
    return Fit(alone.times(scale).plus(added), tuple(errors.tolist()), tuple(plain.tolist()))


def fit_between(work: Floats, seconds: Floats) -> Fit:
    """What passed between steps: a part for each step, sequence and position."""
    base = np.column_stack([np.ones(len(work)), work[:, 0], work[:, 1]])
    knees, errors, plain = _grown(base, work, seconds, 5)
    features = _with(base, work, knees)
    step, sequence, token, *more = (_solve(features, seconds) * _level(features, seconds)).tolist()
    found = _sum(np.array([step, sequence, token, 0.0, 0.0, 0.0]), knees, np.array(more))
    return Fit(found, tuple(errors.tolist()), tuple(plain.tolist()))


def fit_line(x: Floats, seconds: Floats) -> tuple[float, float]:
    """A fixed part and one for each unit of x, neither negative."""
    fixed, each = _solve(np.column_stack([np.ones(len(x)), x]), seconds).tolist()
    return fixed, each


def _physics(work: Floats) -> Floats:
    return np.column_stack([np.ones(len(work)), work])


def _with(base: Floats, work: Floats, knees: Sequence[Knee]) -> Floats:
    return np.column_stack([base, *(np.minimum(work[:, knee.column], knee.limit) for knee in knees)])


def _sum(parts: Floats, knees: Sequence[Knee], values: Floats) -> Sum:
    return Sum(tuple(parts.tolist()), tuple(zip(knees, values.tolist(), strict=True)))


def _grown(base: Floats, work: Floats, seconds: Floats, folds: int) -> tuple[list[Knee], Floats, Floats]:
    """The knees that left-out steps ask for, and the errors of left-out steps with them and without."""
    knees: list[Knee] = []
    errors = plain = _left_out(base, seconds, folds)
    while len(knees) < MOST_KNEES and _size(errors) > _EXACT:
        tried = []
        for knee in [Knee(column, limit) for column in (1, 0) for limit in KNEES]:
            if knee not in knees and np.any(work[:, knee.column] > knee.limit):
                found = _left_out(_with(base, work, [*knees, knee]), seconds, folds)
                tried.append((_size(found), knee, found))
        if not tried:
            break
        size, knee, found = min(tried, key=lambda each: each[0])
        if size > WORTH * _size(errors):
            break
        knees.append(knee)
        errors = found
    return knees, errors, plain


def _solve(features: Floats, seconds: Floats) -> Floats:
    """Non-negative coefficients of least relative error."""
    return _weighted(features, seconds)[0]


def _weighted(features: Floats, seconds: Floats) -> tuple[Floats, Floats]:
    """The coefficients, and the weights of the rows with which they were found."""
    rows, scale = _relative(features, seconds)
    weights = np.ones(len(rows))
    found = np.zeros(rows.shape[1])
    for _ in range(4):
        found = _nnls(rows, weights)
        deviation = np.abs(rows @ found - 1.0)
        typical = 1.4826 * np.median(deviation)
        if typical <= 0:
            break
        # Huber's weights: squared error nearby, absolute error far out.
        weights = np.sqrt(np.minimum(1.0, _FAR * typical / np.maximum(deviation, 1e-12)))
    return found / scale, weights


def _left_out(features: Floats, seconds: Floats, folds: int, level: bool = False) -> Floats:
    """Relative error of each step under a fit to the other folds, whose steps keep the weights they have in all.

    Args:
        level: whether the fit is brought to the mean of the steps it is made from.
    """
    weights = _weighted(features, seconds)[1]
    rows, _ = _relative(features, seconds)
    errors = np.empty(len(rows))
    fold = np.arange(len(rows)) % folds
    for turn in range(min(folds, len(rows))):
        out = fold == turn
        found = _nnls(rows[~out], weights[~out])
        lift = _mean_ratio(rows[~out] @ found) if level else 1.0
        errors[out] = lift * (rows[out] @ found) - 1.0
    return errors


def _level(features: Floats, seconds: Floats) -> float:
    """What brings a fit to the mean of its steps."""
    return _mean_ratio(features @ _solve(features, seconds) / seconds)


def _mean_ratio(predicted: Floats) -> float:
    """Mean of measured over predicted, given predicted over measured; a hundredth of the steps may lie anywhere."""
    ratio = 1.0 / np.maximum(predicted, 1e-9)
    return float(np.mean(np.minimum(ratio, np.quantile(ratio, 0.99))))


def _relative(features: Floats, seconds: Floats) -> tuple[Floats, Floats]:
    """Rows whose sum of parts shall be one, in columns of like size, and what the columns were divided by."""
    rows = features / seconds[:, None]
    scale = np.where(rows.max(axis=0) > 0, rows.max(axis=0), 1.0)
    return rows / scale, scale


def _nnls(rows: Floats, weights: Floats) -> Floats:
    from scipy.optimize import nnls

    found: Floats = nnls(rows * weights[:, None], weights)[0]
    return found


def _size(errors: Floats) -> float:
    """How large errors are: the root mean square, none counting as more than the far ones."""
    clipped = np.minimum(np.abs(errors), np.quantile(np.abs(errors), 0.95))
    return float(np.sqrt(np.mean(clipped**2)))
