"""The response surface: where it is flat, and the best settings within what was tried."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armillary.plan.design import Term
from armillary.plan.effects import Analysis
from armillary.plan.factors import Factor, Point

Vector = NDArray[np.float64]

_CORNERS = 4096


@dataclass(frozen=True)
class Stationary:
    """Where a second-order surface is flat (Box and Wilson, 1951).

    Attributes:
        coded: over the factors that have squares, the others at their middle.
        kind: minimum, maximum or saddle.
        inside: whether it lies within the levels tried; outside it is an extrapolation.
        curvatures: eigenvalues of the second-order part; the direction of the smallest in size is a ridge.
    """

    factors: tuple[str, ...]
    coded: tuple[float, ...]
    point: Point
    kind: str
    inside: bool
    curvatures: tuple[float, ...]


@dataclass(frozen=True)
class Best:
    """The settings with the best prediction within the levels tried, the workload being what it was on average.

    Attributes:
        point: the factors that are settings; empty where only the workload was varied.
    """

    point: Point
    value: float


def stationary_point(analysis: Analysis, factors: Sequence[Factor]) -> Stationary | None:
    """The flat point of the surface over the factors that were tried at three levels or more; None without any, and
    where the surface has no curvature to speak of."""
    curved = [effect.term[0] for effect in analysis.effects if _square(effect.term)]
    if not curved:
        return None
    place = {factor: i for i, factor in enumerate(curved)}
    linear, second = np.zeros(len(curved)), np.zeros((len(curved), len(curved)))
    for effect, coefficient in zip(analysis.effects, analysis.coefficients, strict=True):
        at = [place[i] for i in effect.term if i in place]
        if len(at) != len(effect.term):
            continue
        if len(at) == 1:
            linear[at[0]] = coefficient
        elif at[0] == at[1]:
            second[at[0], at[0]] = coefficient
        else:
            second[at[0], at[1]] = second[at[1], at[0]] = coefficient / 2
    values = np.linalg.eigvalsh(second)
    if np.abs(values).min() <= 1e-9 * max(float(np.abs(linear).max()), float(np.abs(values).max()), 1e-300):
        return None
    coded = np.linalg.solve(-2 * second, linear)
    kind = "minimum" if (values > 0).all() else "maximum" if (values < 0).all() else "saddle"
    return Stationary(
        factors=tuple(factors[i].path for i in curved),
        coded=tuple(map(float, coded)),
        point={
            factors[i].path: factors[i].decode(float(c)) for i, c in zip(curved, np.clip(coded, -3, 3), strict=True)
        },
        kind=kind,
        inside=bool((np.abs(coded) <= 1).all()),
        curvatures=tuple(map(float, values)),
    )


def best_settings(analysis: Analysis, factors: Sequence[Factor], lower: bool) -> Best:
    """The best prediction within the levels tried: at a corner, or by descent where the surface is curved.

    Args:
        lower: whether less is better.
    """
    count = len(factors)
    sign = 1.0 if lower else -1.0
    free = np.array([not factor.path.startswith("workload.") for factor in factors])
    axes = [(-1.0, 1.0) if chosen else (0.0, 0.0) for chosen in free]
    if 2 ** int(free.sum()) > _CORNERS:
        corners = np.sign(np.random.default_rng(0).random((_CORNERS, count)) - 0.5) * free
    else:
        corners = np.array(list(itertools.product(*((-1.0, 1.0) if chosen else (0.0,) for chosen in free))))
    start = corners[np.argsort(sign * analysis.predict(corners), kind="stable")[:8]]
    if any(_square(effect.term) for effect in analysis.effects):
        from scipy.optimize import minimize

        def loss(x: Vector) -> float:
            return float(sign * analysis.predict(x[None, :])[0])

        tried = [minimize(loss, x, bounds=axes, method="L-BFGS-B").x for x in [*start, np.zeros(count)]]
        start = np.array(sorted(tried, key=loss))
    point = {f.path: f.decode(float(c)) for f, c, chosen in zip(factors, start[0], free, strict=True) if chosen}
    # Settings that are whole numbers move the point a little; what is told is the prediction for these.
    coded = np.array([[f.code(point[f.path]) if f.path in point else 0.0 for f in factors]])
    return Best(point, float(analysis.predict(coded)[0]))


def _square(term: Term) -> bool:
    return len(term) == 2 and term[0] == term[1]
