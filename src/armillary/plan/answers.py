"""What an experiment found, in sentences: which settings matter, by how much, which do not, and how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from armillary.plan.design import Design, label
from armillary.plan.effects import Analysis, Effect
from armillary.plan.experiment import Observations
from armillary.plan.factors import Factor, said
from armillary.plan.figures import figure
from armillary.plan.surface import Best, Stationary, best_settings, stationary_point

_OUTSIDE = 0.05


@dataclass(frozen=True)
class Answer:
    """One response, explained.

    Attributes:
        matters: sentences, the largest effect first.
        rest: what was not found to matter, with how large it could still be.
        advice: the best settings tried or between them, and the flat point of a surface.
        trust: what speaks against believing it.
    """

    response: str
    title: str
    matters: tuple[str, ...]
    rest: tuple[str, ...]
    advice: tuple[str, ...]
    trust: tuple[str, ...]
    best: Best
    stationary: Stationary | None


def describe(design: Design, factors: Sequence[Factor], runs: int) -> list[str]:
    """What a design costs and what it can tell, before anything is run."""
    from armillary.plan.design import aliases

    told = [
        f"{len(design.rows)} settings of {len(factors)} factor{'s' if len(factors) > 1 else ''} ({design.kind}), "
        f"{runs} runs in all."
    ]
    if design.resolution is not None and 2 ** len(factors) > len(design.rows):
        told.append(f"A fraction of the {2 ** len(factors)} combinations, of resolution {design.resolution}.")
    if design.kind == "plackett-burman":
        told.append("Main effects only: each is a little biased by interactions of the others, if there are any.")
    for first, others in aliases(design.rows).items():
        if design.kind == "plackett-burman" or not design.two_level:
            break
        told.append(f"{label(first, factors)} cannot be told from {', '.join(label(o, factors) for o in others)}.")
    return told


def answer(analysis: Analysis, observed: Observations) -> Answer:
    """Put an analysis into words."""
    about = figure(analysis.response)
    factors = observed.factors
    ranked = sorted(analysis.effects, key=lambda effect: -abs(effect.estimate))
    best = best_settings(analysis, factors, about.lower)
    flat = stationary_point(analysis, factors)
    return Answer(
        response=analysis.response,
        title=about.title,
        matters=tuple(_said(effect, analysis, factors) for effect in ranked if effect.matters),
        rest=tuple(_unsaid(effect, analysis) for effect in ranked if not effect.matters and len(effect.term) == 1),
        advice=tuple(_advice(analysis, factors, best, flat)),
        trust=tuple(_trust(analysis, observed)),
        best=best,
        stationary=flat,
    )


def effect_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    """For a table: main effects, and whatever else matters, the largest first."""
    shown = [effect for effect in analysis.effects if len(effect.term) == 1 or effect.matters]
    return [
        (
            effect.label,
            size(effect.estimate, analysis),
            f"{size(effect.low, analysis)} to {size(effect.high, analysis)}",
            f"{effect.adjusted:.2g}",
            f"{effect.share:.1%}",
        )
        for effect in sorted(shown, key=lambda effect: -abs(effect.estimate))
    ]


def _said(effect: Effect, analysis: Analysis, factors: Sequence[Factor]) -> str:
    about = figure(analysis.response)
    change_by = (
        f"{size(effect.estimate, analysis)} (95 %: {size(effect.low, analysis)} to {size(effect.high, analysis)})"
    )
    behind = f" It cannot be told from {', '.join(effect.aliases)}." if effect.aliases else ""
    if len(effect.term) == 1:
        factor = factors[effect.term[0]]
        change = f"from {said(factor.levels[0])} to {said(factor.levels[-1])}"
        return f"{factor.path} {change} changes {about.title} by {change_by}.{behind}"
    if effect.term[0] == effect.term[1]:
        way = "above" if effect.estimate > 0 else "below"
        return f"{factors[effect.term[0]].path} is curved: its ends lie {way} the middle by {change_by}.{behind}"
    one, other = (factors[i] for i in effect.term)
    main = {e.term: e.estimate for e in analysis.effects}
    low, high = (main.get((effect.term[0],), 0.0) + sign * effect.estimate for sign in (-1, 1))
    start, end = said(other.levels[0]), said(other.levels[-1])
    alone = {e.term for e in analysis.effects if e.matters and len(e.term) == 1}
    if effect.triples and not {(i,) for i in effect.term} & alone:
        behind += f" Neither has an effect of its own, so it is rather {' or '.join(effect.triples)}, from which this "
        behind += "fraction cannot tell it."
    return (
        f"{one.path} and {other.path} interact: the first changes {about.title} by {size(low, analysis)} at "
        f"{other.name} = {start} and by {size(high, analysis)} at {end}.{behind}"
    )


def _unsaid(effect: Effect, analysis: Analysis) -> str:
    most = max(abs(effect.low), abs(effect.high))
    bound = f"{max(math.expm1(most), 0.001):.1%}" if analysis.log else figure(analysis.response).shown(most)
    return f"{effect.label}: no effect found; if it has one, it is most likely below {bound}."


def _advice(analysis: Analysis, factors: Sequence[Factor], best: Best, flat: Stationary | None) -> list[str]:
    about = figure(analysis.response)
    moving = {i for effect in analysis.effects if effect.matters for i in effect.term}
    paths = {factor.path for i, factor in enumerate(factors) if i in moving}
    chosen = [f"{path} = {said(value)}" for path, value in best.point.items() if path in paths]
    told = []
    if chosen:
        others = " The other settings make no difference that was found." if len(chosen) < len(best.point) else ""
        told.append(f"Best within what was tried: {', '.join(chosen)}; predicted {about.shown(best.value)}.{others}")
    if flat is not None:
        where = ", ".join(f"{path} = {said(value)}" for path, value in flat.point.items())
        if flat.inside:
            told.append(f"The surface has a {flat.kind} at {where}.")
        else:
            told.append(f"The surface's {flat.kind} lies outside of what was tried; it says nothing about there.")
    return told


def _trust(analysis: Analysis, observed: Observations) -> list[str]:
    told = [
        f"The model explains {analysis.explained:.0%} of the variation within blocks, with {analysis.freedom} degrees "
        "of freedom left."
        if analysis.freedom
        else "No run is left to tell noise by: intervals take most effects to be noise (Lenth). Replicate to be surer."
    ]
    told += [f"Check of {check.about} failed. {check.verdict}." for check in analysis.checks if not check.passed]
    if analysis.log:
        told.append("Effects are ratios: the analysis is of logarithms.")
    unstable = observed.values.get("unstable")
    if unstable is not None and (count := int(unstable.sum())):
        told.append(
            f"In {count} of {len(unstable)} runs ever more requests were under way: these settings did not keep up, "
            "and their latencies describe how long a run was."
        )
    outside = observed.values.get("outside_share")
    if outside is not None and (outside > _OUTSIDE).any():
        told.append(
            f"In {int((outside > _OUTSIDE).sum())} of {len(outside)} runs more than {_OUTSIDE:.0%} of the steps lay "
            "outside of what the cost model was fitted on: there it extrapolates."
        )
    failed = observed.values.get("failed_share")
    if failed is not None and (failed > 0).any():
        told.append(
            f"In {int((failed > 0).sum())} of {len(failed)} runs requests failed (up to {failed.max():.1%}); latencies "
            "are of the others."
        )
    return told


def size(estimate: float, analysis: Analysis) -> str:
    """An effect as people say it: a percentage or a factor where the analysis is of logarithms."""
    if not analysis.log:
        about = figure(analysis.response)
        return ("+" if estimate >= 0 else "−") + about.shown(abs(estimate))
    ratio = math.exp(min(estimate, 700.0))
    return f"{ratio - 1:+.1%}" if 0.5 <= ratio <= 2 else f"×{ratio:.3g}"
