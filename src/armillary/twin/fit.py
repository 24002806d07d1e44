"""From measured steps to sums of parts: physics first, and more only where left-out steps ask for it.

A step's seconds are a sum of parts that cannot be negative: a fixed part, one for each sequence, position computed,
row sampled, position of context read, pair attended and, in a server, what is done for requests. The coefficients are
the non-negative ones with the least squared error (Lawson and Hanson 1974, by scipy): of designed steps relative to
what is predicted, large errors counting less than their square (Huber 1964); of steps under load relative to its root,
as where variance grows with the mean, so that sums come out right. Where sequences or positions cost less beyond some
number of them (tiles of rows, threads that wait for each other), a part for those up to that number may join; where
they cost more (multiplying takes longer than reading the weights does: Williams, Waterman and Patterson 2009), one for
those beyond it, and where the context of many sequences costs more (it fits no cache, and clients of many keep the
other processors busy), one for that of the sequences beyond a number, and where prompts cost more beside other
sequences than alone, one for that; but only one that makes the steps that were left out of the fit come out better. All
parts grow with the work, so that predictions do too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import numpy.typing as npt

from armillary.twin.work import COUNTED, StepWork

Floats = npt.NDArray[np.float64]
PARTS = ("step", "sequence", "token", "row", "context", "pair", "near", "read", "read token", "ended")
_FOLDS = 5
_SERVED = [0, 1, 5, 6, 7, 8]
"""Columns of a step's work for which more is spent under load: sequences, tokens, and what a server does."""
KNEES = (2, 4, 8, 16, 32, 64, 128)
"""Numbers of sequences or positions up to which, or beyond which, they may cost something of their own."""
CONTEXT = 3
"""Its column of a step's work."""
BESIDE = -1
"""In place of a column: positions of prompts, for each other sequence of the step."""
_BENDS = ((1, False), (1, True), (0, False), (0, True), (CONTEXT, True), (BESIDE, False))
"""Columns that knees may have, and whether for what lies beyond."""
WORTH = 0.97
"""A further part must bring the error of left-out steps down to this share of what it was."""
MOST_KNEES = 3
FLOOR = 0.8
"""Share of a designed step that a step under load costs at least: less than 1 because designed steps may have been
disturbed more."""
_EXACT = 1e-4
"""No clock tells more: with errors below this, nothing is asked for."""
_FAR = 4.0
"""Deviations beyond this many typical ones count as that many."""


@dataclass(frozen=True, slots=True)
class Knee:
    """A part for the first `limit` sequences (column 0 of a step's work) or positions (column 1), or for the others; or
    for the context of the sequences beyond them (`CONTEXT`), as if all had as much; or for each position of a prompt,
    which is more than the next of its sequence, beside each of the first `limit` other sequences (`BESIDE`)."""

    column: int
    limit: int
    beyond: bool = False

    def bends(self, work: Floats) -> bool:
        """Whether any of these steps lies beyond the limit."""
        if self.column == BESIDE:
            return bool(np.any((work[:, 1] > work[:, 0]) & (work[:, 0] > self.limit)))
        return bool(np.any(work[:, 0 if self.column == CONTEXT else self.column] > self.limit))

    @property
    def name(self) -> str:
        if self.column == BESIDE:
            return f"prompt token, beside each of the first {self.limit} sequences"
        of = " sequences" if self.column == CONTEXT else ""
        return f"{PARTS[1 + self.column]}, {'beyond' if self.beyond else 'first'} {self.limit}{of}"

    def over(self, work: Floats) -> Floats:
        """How many there are in each of many steps: work [N, COUNTED] -> [N]."""
        if self.column == CONTEXT:
            found: Floats = work[:, CONTEXT] * np.maximum(1.0 - self.limit / np.maximum(work[:, 0], 1.0), 0.0)
            return found
        if self.column == BESIDE:
            beside: Floats = (work[:, 1] - work[:, 0]) * np.minimum(work[:, 0] - 1.0, self.limit)
            return beside
        count = work[:, self.column]
        return np.maximum(count - self.limit, 0.0) if self.beyond else np.minimum(count, self.limit)


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
        return float(self.over(np.array([work[:COUNTED]], dtype=np.float64))[0])

    def over(self, work: Floats) -> Floats:
        """Seconds for many steps: work [N, COUNTED] -> [N]."""
        found: Floats = _physics(work) @ np.array(self.parts)
        for knee, value in self.knees:
            found += value * knee.over(work)
        return found


ZERO = Sum((0.0,) * len(PARTS))


@dataclass(frozen=True, slots=True)
class Fit:
    """A sum, and how far it is off.

    Attributes:
        errors: relative errors, each step predicted by a fit without it (or without its fold).
        plain: the same without any knee, for comparison.
        trust: how much each of them counts.
    """

    sum: Sum
    errors: tuple[float, ...] = field(default=(), repr=False)
    plain: tuple[float, ...] = field(default=(), repr=False)
    trust: tuple[float, ...] = field(default=(), repr=False)

    @property
    def error(self) -> tuple[float, float]:
        """Median and 95th percentile of the size of the relative error."""
        sizes, trust = np.abs(self.errors), np.array(self.trust)
        return _quantile(sizes, trust, 0.5), _quantile(sizes, trust, 0.95)


def fit_designed(work: Floats, seconds: Floats) -> Fit:
    """Designed steps, each left out in turn: work [N, COUNTED], seconds [N]."""
    data = _Data(seconds, np.zeros(len(work)), np.ones(len(work)), _FAR)
    knees, errors, plain = _grown(_physics(work), work, data, len(work))
    found = _solve(_with(_physics(work), work, knees), data)
    return _fit(_sum(found[: len(PARTS)], knees, found[len(PARTS) :]), errors, plain, data)


def fit_loaded(work: Floats, seconds: Floats, count: Floats, alone: Sum) -> Fit:
    """Steps as they came under load, means of `count` like ones each: designed ones, scaled, and more for the step,
    each sequence, each position, and what a server does for its requests.

    Nothing is faster under load than alone, so designed steps count with `FLOOR` at least: what was seldom seen under
    load, such as long contexts, keeps its cost.
    """
    floor = FLOOR * alone.over(work)
    base = np.column_stack([floor, np.ones(len(work)), work[:, _SERVED]])
    data = _Data(seconds, floor, count, None)
    knees, errors, plain = _grown(base, work, data, _FOLDS)
    scale, *found = _solve(_with(base, work, knees), data).tolist()
    return _fit(alone.times(FLOOR * (1.0 + scale)).plus(_simple(found, knees)), errors, plain, data)


def fit_between(work: Floats, seconds: Floats, count: Floats) -> Fit:
    """What passed between steps, means of `count` like ones each: a part for each step, sequence, position, and what a
    server does for its requests."""
    base = np.column_stack([np.ones(len(work)), work[:, _SERVED]])
    data = _Data(seconds, np.zeros(len(work)), count, None)
    knees, errors, plain = _grown(base, work, data, _FOLDS)
    return _fit(_simple(_solve(_with(base, work, knees), data).tolist(), knees), errors, plain, data)


def fit_line(x: Floats, seconds: Floats) -> tuple[float, float]:
    """A fixed part and one for each unit of x, neither negative."""
    data = _Data(seconds, np.zeros(len(x)), np.ones(len(x)), _FAR)
    fixed, each = _solve(np.column_stack([np.ones(len(x)), x]), data).tolist()
    return fixed, each


@dataclass(frozen=True, slots=True)
class _Data:
    """What is to be predicted.

    Attributes:
        seconds: measured [N].
        known: the part of them that is not asked for [N].
        count: how many steps each is the mean of [N].
        far: None for steps under load, whose sum is to be right, because a client waits for the sum of many: a squared
            error counts relative to what is predicted, as where variance grows with the mean. Else single ones are to
            be right: it counts relative to its square, and errors beyond so many typical ones count as no more.
    """

    seconds: Floats
    known: Floats
    count: Floats
    far: float | None

    @property
    def trust(self) -> Floats:
        """How much each counts where errors are told: single steps vary about as much as they are long, and with many
        it is the fit that is off, by a tenth of that."""
        trust: Floats = self.count / (1.0 + self.count / 100.0)
        return trust

    @property
    def worth(self) -> Floats:
        """How much the square of a relative error of each counts in the fit."""
        return self.count * self.seconds if self.far is None else self.count

    def weights(self, features: Floats) -> Floats:
        """What to multiply each row with, found by repeating the fit."""
        rows = features / _scale(features)
        weights = np.sqrt(self.count) / self.seconds
        for _ in range(6):
            found = _nnls(rows, self.seconds - self.known, weights)
            predicted = np.maximum(self.known + rows @ found, 0.1 * self.seconds)
            if self.far is None:
                weights = np.sqrt(self.count / predicted)
                continue
            deviation = np.abs(self.seconds / predicted - 1.0)
            limit = max(self.far * 1.4826 * float(np.median(deviation)), _EXACT)
            # Huber's weights: squared error nearby, absolute error far out.
            small = np.minimum(1.0, limit / np.maximum(deviation, 1e-12))
            weights = np.sqrt(small * self.count) / predicted
        return weights


def _fit(found: Sum, errors: Floats, plain: Floats, data: _Data) -> Fit:
    return Fit(found, tuple(errors.tolist()), tuple(plain.tolist()), tuple(data.trust.tolist()))


def _physics(work: Floats) -> Floats:
    return np.column_stack([np.ones(len(work)), work])


def _with(base: Floats, work: Floats, knees: Sequence[Knee]) -> Floats:
    return np.column_stack([base, *(knee.over(work) for knee in knees)])


def _sum(parts: Floats, knees: Sequence[Knee], values: Floats) -> Sum:
    return Sum(tuple(parts.tolist()), tuple(zip(knees, values.tolist(), strict=True)))


def _simple(found: Sequence[float], knees: Sequence[Knee]) -> Sum:
    """From what was found for a step, for each of the columns of `_SERVED` and for each knee."""
    step, sequence, token, *rest = found
    served, values = rest[: len(_SERVED) - 2], rest[len(_SERVED) - 2 :]
    return _sum(np.array([step, sequence, token, 0.0, 0.0, 0.0, *served]), knees, np.array(values))


def _grown(base: Floats, work: Floats, data: _Data, folds: int) -> tuple[list[Knee], Floats, Floats]:
    """The knees that left-out steps ask for, and the errors of left-out steps with them and without."""
    knees: list[Knee] = []
    errors = plain = _left_out(base, data, folds)
    while len(knees) < MOST_KNEES and _size(errors, data.worth) > _EXACT:
        tried = []
        for knee in [Knee(column, limit, beyond) for (column, beyond), limit in product(_BENDS, KNEES)]:
            if knee not in knees and knee.bends(work):
                found = _left_out(_with(base, work, [*knees, knee]), data, folds)
                tried.append((_size(found, data.worth), knee, found))
        if not tried:
            break
        size, knee, found = min(tried, key=lambda each: each[0])
        if size > WORTH * _size(errors, data.worth):
            break
        knees.append(knee)
        errors = found
    return knees, errors, plain


def _solve(features: Floats, data: _Data) -> Floats:
    """Non-negative coefficients of least error."""
    scale = _scale(features)
    found: Floats = _nnls(features / scale, data.seconds - data.known, data.weights(features)) / scale
    return found


def _left_out(features: Floats, data: _Data, folds: int) -> Floats:
    """Relative error of each step under a fit to the other folds, whose steps keep the weights they have in all."""
    weights, wanted = data.weights(features), data.seconds - data.known
    rows = features / _scale(features)
    errors = np.empty(len(rows))
    fold = np.arange(len(rows)) % folds
    for turn in range(min(folds, len(rows))):
        out = fold == turn
        predicted = data.known[out] + rows[out] @ _nnls(rows[~out], wanted[~out], weights[~out])
        errors[out] = predicted / data.seconds[out] - 1.0
    return errors


def _scale(features: Floats) -> Floats:
    """The largest of each column: columns of like size are solved for more exactly."""
    largest = features.max(axis=0)
    found: Floats = np.where(largest > 0, largest, 1.0)
    return found


def _nnls(rows: Floats, seconds: Floats, weights: Floats) -> Floats:
    from scipy.optimize import nnls

    found: Floats = nnls(rows * weights[:, None], seconds * weights)[0]
    return found


def _size(errors: Floats, worth: Floats) -> float:
    """How large errors are: the root mean square of their logarithms, none counting as more than the far ones."""
    sizes = np.abs(np.log(np.maximum(1.0 + errors, 0.05)))
    return float(np.sqrt(np.average(np.minimum(sizes, _quantile(sizes, worth, 0.95)) ** 2, weights=worth)))


def _quantile(values: Floats, weights: Floats, share: float) -> float:
    """The least value with this share of the weights at or below it."""
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    return float(values[order][min(np.searchsorted(below, share * below[-1]), len(values) - 1)])
