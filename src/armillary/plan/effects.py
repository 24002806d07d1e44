"""What moves a response and by how much: least squares over the terms of a design, by statsmodels.

A term's effect is the change of the response from its factor's low level to its high one, the others at their middle;
an interaction's is half of how much the one factor's effect changes along the other; a square's is by how much the ends
lie above the middle. Responses that are times or rates are taken by their logarithm: settings multiply them, and an
effect of 0.1 is then a tenth more. Blocks (replicates) take out what their arrivals have in common.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.errors import ArmillaryError, Code
from armillary.plan.design import Term, aliases, column, label
from armillary.plan.experiment import Observations

Vector = NDArray[np.float64]

CONFIDENCE = 0.95
_ROUNDING = 1e-9
"""Of the largest effect: what is smaller is rounding."""


@dataclass(frozen=True)
class Effect:
    """One term's effect, on the scale of the analysis (`Analysis.log`).

    Attributes:
        low, high: 95 % interval; not widened for the number of effects.
        p: of no effect at all; `adjusted` accounts for there being several (Holm).
        share: of the variation within blocks that the term explains.
        aliases: terms up to interactions of two that it cannot be told from.
        triples: interactions of three likewise, which are taken to be nothing.
    """

    term: Term
    label: str
    estimate: float
    low: float
    high: float
    p: float
    adjusted: float
    share: float
    aliases: tuple[str, ...]
    triples: tuple[str, ...] = ()

    @property
    def matters(self) -> bool:
        return self.adjusted < 1 - CONFIDENCE


@dataclass(frozen=True)
class Source:
    """A row of the analysis of variance; `f` and `p` are None for the residual, and where nothing is left for one."""

    label: str
    squares: float
    freedom: int
    f: float | None
    p: float | None


@dataclass(frozen=True)
class Check:
    """One thing that the intervals rely on, tested on the residuals; `p` is None where runs are too few for it."""

    about: str
    p: float | None
    verdict: str

    @property
    def passed(self) -> bool:
        return self.p is None or self.p >= 0.01


@dataclass(frozen=True)
class Analysis:
    """A response explained.

    Attributes:
        log: whether everything is on a logarithmic scale.
        by: where the intervals come from: `residuals`, or `Lenth` where every run was spent on an effect.
        coefficients: of each effect's term, over coded settings.
        fitted, residuals: of each run, in the order in which they were taken.
    """

    response: str
    log: bool
    by: str
    intercept: float
    effects: tuple[Effect, ...]
    coefficients: tuple[float, ...]
    anova: tuple[Source, ...]
    explained: float
    freedom: int
    sigma: float
    checks: tuple[Check, ...]
    fitted: Vector
    residuals: Vector

    def predict(self, coded: Vector) -> Vector:
        """The response at coded settings [points, factors], on its own scale, in the average block."""
        found = np.full(len(coded), self.intercept)
        for effect, coefficient in zip(self.effects, self.coefficients, strict=True):
            found = found + coefficient * column(coded, effect.term)
        return np.exp(found) if self.log else found


def analyse(observed: Observations, response: str, terms: Sequence[Term], log: bool) -> Analysis:
    """Explain a response by terms.

    Args:
        log: take logarithms; not done where a value is not above 0.
    """
    raw = observed.values[response]
    log = log and bool((raw > 0).all())
    y = np.log(raw) if log else raw
    if np.ptp(y) <= 1e-12 * max(1.0, float(np.abs(y).max())):
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"{response} must vary to be explained, given {raw[0]:g} in every run; no factor here moves it",
            param=response,
        )
    design = np.column_stack([column(observed.rows, term) for term in terms])
    blocks = _sum_coded(observed.blocks)
    if len(y) < 1 + design.shape[1] + blocks.shape[1]:
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"there must be as many runs as effects, given {len(y)} for {design.shape[1]}"
        )
    import statsmodels.api as sm

    fit = sm.OLS(y, np.column_stack([np.ones(len(y)), design, blocks])).fit()
    coefficients = np.asarray(fit.params)[1 : 1 + design.shape[1]]
    factor = np.array([1.0 if len(term) == 2 and term[0] == term[1] else 2.0 for term in terms])
    estimates = factor * coefficients
    estimates[np.abs(estimates) <= _ROUNDING * np.abs(estimates).max()] = 0.0
    freedom = round(float(fit.df_resid))
    residuals, fitted = np.asarray(fit.resid), np.asarray(fit.fittedvalues)
    if freedom > 0:
        margins, p = _by_residuals(fit, factor, estimates, freedom, len(terms))
    else:
        margins, p = _by_lenth(estimates)
    shares = _shares(design, blocks, y)
    names = [label(term, observed.factors) for term in terms]
    hidden = aliases(observed.rows, 3)

    def behind(term: Term, several: bool) -> tuple[str, ...]:
        """What a term cannot be told from: interactions of three, or what is simpler."""
        others = [other for other in hidden.get(term, ()) if (len(other) == 3) == several]
        return tuple(label(other, observed.factors) for other in others)

    effects = tuple(
        Effect(
            term, name, float(e), float(e - m), float(e + m), float(q), float(a), float(s),
            behind(term, False), behind(term, True),
        )
        for term, name, e, m, q, a, s in zip(terms, names, estimates, margins, p, _holm(p), shares, strict=True)
    )  # fmt: skip
    within = y - _block_means(y, observed.blocks)
    return Analysis(
        response=response,
        log=log,
        by="residuals" if freedom > 0 else "Lenth",
        intercept=float(fit.params[0]),
        effects=effects,
        coefficients=tuple(map(float, coefficients)),
        anova=_sources(fit, names, blocks.shape[1]) if freedom > 0 else (),
        explained=1 - float(residuals @ residuals) / max(float(within @ within), 1e-300),
        freedom=freedom,
        sigma=math.sqrt(float(residuals @ residuals) / freedom) if freedom > 0 else 0.0,
        checks=_checks(residuals, fitted, freedom),
        fitted=fitted,
        residuals=residuals,
    )


def _by_residuals(fit: Any, factor: Vector, estimates: Vector, freedom: int, count: int) -> tuple[Vector, Vector]:
    from scipy import stats

    errors = factor * np.asarray(fit.bse)[1 : 1 + count]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(estimates) / errors
    # A twin without noise leaves no residuals: then whatever differs from nothing is an effect.
    exact = np.where(estimates != 0, np.inf, 0.0)
    ratio = np.where(errors > _ROUNDING * np.abs(estimates).max(), ratio, exact)
    return errors * stats.t.ppf((1 + CONFIDENCE) / 2, freedom), np.asarray(2 * stats.t.sf(ratio, freedom))


def _by_lenth(estimates: Vector) -> tuple[Vector, Vector]:
    """Intervals where every run was spent on an effect: most effects are taken to be nothing, and their size to be
    noise (R. V. Lenth, "Quick and easy analysis of unreplicated factorials", Technometrics 31(4), 1989)."""
    from scipy import stats

    sizes = np.abs(estimates)
    start = 1.5 * np.median(sizes)
    small = sizes[sizes < 2.5 * start]
    error = 1.5 * np.median(small) if small.size else start
    freedom = len(estimates) / 3
    ratio = sizes / error if error > 0 else np.where(sizes > 0, np.inf, 0.0)
    margin = np.full(len(estimates), error * stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    return margin, np.asarray(2 * stats.t.sf(ratio, freedom))


def _holm(p: Vector) -> Vector:
    """p values that account for there being several (S. Holm, "A simple sequentially rejective multiple test
    procedure", Scandinavian Journal of Statistics 6, 1979)."""
    order = np.argsort(p)
    steps = np.maximum.accumulate(np.sort(p) * np.arange(len(p), 0, -1))
    found = np.empty(len(p))
    found[order] = np.minimum(1.0, steps)
    return found


def _sum_coded(blocks: NDArray[np.int64]) -> Vector:
    """Columns for all blocks but the last, which is minus their sum: the intercept is then the average block."""
    levels = np.unique(blocks)
    columns = np.asarray(blocks[:, None] == levels[None, :-1], dtype=np.float64)
    columns[blocks == levels[-1]] = -1.0
    return columns


def _block_means(y: Vector, blocks: NDArray[np.int64]) -> Vector:
    found = np.empty_like(y)
    for block in np.unique(blocks):
        found[blocks == block] = y[blocks == block].mean()
    return found


def _sources(fit: Any, names: Sequence[str], blocks: int) -> tuple[Source, ...]:
    """What each column explains beyond all others: of one degree of freedom, its t squared times the mean residual."""
    mean = float(fit.ssr) / max(1.0, float(fit.df_resid))
    found = []
    for i, name in enumerate(names):
        f = float(fit.tvalues[1 + i]) ** 2
        found.append(Source(name, f * mean, 1, _number(f), _number(fit.pvalues[1 + i])))
    if blocks:
        with warnings.catch_warnings(action="ignore"):  # where runs do not differ at all; the table then has no figure
            test = fit.f_test(np.eye(len(fit.params))[1 + len(names) :])
        f = float(np.squeeze(test.fvalue))
        found.append(Source("blocks", f * blocks * mean, blocks, _number(f), _number(np.squeeze(test.pvalue))))
    return (*found, Source("residual", float(fit.ssr), round(float(fit.df_resid)), None, None))


def _shares(design: Vector, blocks: Vector, y: Vector) -> Vector:
    """Squares that each column explains beyond all others, over the variation that blocks leave."""
    others = np.column_stack([np.ones(len(y)), blocks])
    total = _left(others, y)
    everything = np.column_stack([others, design])
    # The part of a column that the others do not say, by one inverse for all of them.
    inverse = np.linalg.pinv(everything.T @ everything).diagonal()[others.shape[1] :]
    coefficients = np.linalg.lstsq(everything, y, rcond=None)[0][others.shape[1] :]
    return np.asarray(coefficients**2 / np.maximum(inverse, 1e-300) / max(total, 1e-300))


def _left(columns: Vector, y: Vector) -> float:
    solved = np.linalg.lstsq(columns, y, rcond=None)[0]
    rest = y - columns @ solved
    return float(rest @ rest)


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _checks(residuals: Vector, fitted: Vector, freedom: int) -> tuple[Check, ...]:
    titles = ("normal residuals", "constant variance", "independence of run order")
    if freedom < 5 or np.abs(residuals).max() < 1e-10 * max(1.0, float(np.abs(fitted).max())):
        reason = "too few runs to tell" if freedom < 5 else "no residuals to speak of"
        return tuple(Check(title, None, reason) for title in titles)
    from scipy import stats
    from statsmodels.stats.diagnostic import het_breuschpagan

    normal = float(stats.shapiro(residuals).pvalue)
    spread = 1.0
    if np.ptp(fitted) > 0:
        spread = float(het_breuschpagan(residuals, np.column_stack([np.ones(len(fitted)), fitted]))[1])
    order = float(stats.spearmanr(np.arange(len(residuals)), residuals).pvalue)
    said = (
        (normal, "Shapiro-Wilk", "a few runs are far off; intervals are rough"),
        (spread, "Breusch-Pagan", "runs with larger values scatter otherwise; small effects there are less certain"),
        (order, "Spearman's rank correlation", "results drifted while the experiment ran"),
    )
    return tuple(
        Check(title, p, f"{test}: p = {p:.2g}" + ("" if p >= 0.01 else f"; {worry}"))
        for title, (p, test, worry) in zip(titles, said, strict=True)
    )
