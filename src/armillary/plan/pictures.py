"""The plots of an experiment, as inline SVG coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from armillary.measure.plots import number, ticks
from armillary.plan.effects import Analysis
from armillary.plan.factors import Factor, said
from armillary.plan.figures import figure

Vector = NDArray[np.float64]

_WIDTH = 640
_LABELS = 250
_BAR = 24
_CELLS = 28


def pareto(analysis: Analysis, most: int = 24) -> str:
    """Sizes of effects with their intervals, the largest first; those that matter in colour."""
    ranked = sorted(analysis.effects, key=lambda effect: -abs(effect.estimate))[:most]
    reach = max([abs(bound) for effect in ranked for bound in (effect.low, effect.high)] + [1e-12])
    scale = (_WIDTH - _LABELS - 70) / reach
    height = _BAR * len(ranked) + 10
    parts = [_open(height, "effects by size")]
    for row, effect in enumerate(ranked):
        y, size = 5 + row * _BAR, abs(effect.estimate)
        sign = 1 if effect.estimate >= 0 else -1
        low, high = sorted((max(0.0, sign * effect.low), max(0.0, sign * effect.high)))
        colour = ("c2" if sign > 0 else "c1") if effect.matters else "off"
        middle, end = y + _BAR / 2, _LABELS + high * scale
        parts.append(
            f'<text x="{_LABELS - 6}" y="{middle + 4:.1f}" text-anchor="end">{escape(short(effect.label))}</text>'
            f'<rect class="{colour}" x="{_LABELS}" y="{y + 4}" width="{size * scale:.1f}" height="{_BAR - 8}">'
            f"<title>{escape(effect.label)}</title></rect>"
            f'<path class="c4" d="M{_LABELS + low * scale:.1f} {middle}H{end:.1f}"/>'
            f'<text x="{end + 6:.1f}" y="{middle + 4:.1f}">{_effect(effect.estimate, analysis)}</text>'
        )
    return "".join(parts) + "</svg>"


def main_effects(analysis: Analysis, factors: Sequence[Factor]) -> str:
    """What is predicted along each factor, the others at their middle."""
    panels = []
    for i, factor in enumerate(factors):
        along = np.linspace(-1, 1, 21) if factor.numeric else np.array([-1.0, 1.0])
        coded = np.zeros((len(along), len(factors)))
        coded[:, i] = along
        panels.append((factor, [(factor.name, along, analysis.predict(coded), 1)]))
    return _panels(panels, analysis)


def interactions(analysis: Analysis, factors: Sequence[Factor], most: int = 6) -> str:
    """For the largest interactions: what is predicted along one factor, at both ends of the other."""
    pairs = [effect for effect in analysis.effects if len(effect.term) == 2 and effect.term[0] != effect.term[1]]
    panels = []
    for effect in sorted(pairs, key=lambda found: -abs(found.estimate))[:most]:
        one, other = effect.term
        along = np.linspace(-1, 1, 21) if factors[one].numeric else np.array([-1.0, 1.0])
        lines = []
        for colour, level in ((1, -1.0), (2, 1.0)):
            coded = np.zeros((len(along), len(factors)))
            coded[:, one], coded[:, other] = along, level
            end = factors[other].levels[0 if level < 0 else -1]
            lines.append(
                (
                    f"{factors[other].name} {said(end)}" if level < 0 else said(end),
                    along,
                    analysis.predict(coded),
                    colour,
                )
            )
        panels.append((factors[one], lines))
    return _panels(panels, analysis) if panels else '<p class="empty">This design tells no interactions.</p>'


def surface(analysis: Analysis, factors: Sequence[Factor]) -> str:
    """The prediction over the two numeric factors that matter most, the others at their middle."""
    weight = dict.fromkeys((i for i, factor in enumerate(factors) if factor.numeric), 0.0)
    for effect in analysis.effects:
        for i in set(effect.term) & set(weight):
            weight[i] += abs(effect.estimate)
    if len(weight) < 2:
        return '<p class="empty">A surface needs two factors that are numbers.</p>'
    across, up = sorted(sorted(weight, key=lambda i: -weight[i])[:2])
    steps = np.linspace(-1, 1, _CELLS)
    grid_x, grid_y = np.meshgrid(steps, steps)
    coded = np.zeros((_CELLS * _CELLS, len(factors)))
    coded[:, across], coded[:, up] = grid_x.ravel(), grid_y.ravel()
    values = analysis.predict(coded)
    low, high = float(values.min()), float(values.max())
    shade = (
        (np.log(values / low) / max(math.log(high / low), 1e-12))
        if low > 0
        else (values - low) / max(high - low, 1e-300)
    )
    about = figure(analysis.response)
    left, top, size = 70, 10, 300
    cell = size / _CELLS
    parts = [_open(size + 50, f"{analysis.response} over {factors[across].path} and {factors[up].path}")]
    for value, strength, x, y in zip(values, shade, coded[:, across], coded[:, up], strict=True):
        px, py = left + (x + 1) / 2 * (size - cell), top + (1 - y) / 2 * (size - cell)
        parts.append(
            f'<rect class="c2" opacity="{0.06 + 0.9 * strength:.2f}" x="{px:.1f}" y="{py:.1f}" '
            f'width="{cell + 0.3:.1f}" height="{cell + 0.3:.1f}"><title>{escape(about.shown(value))}</title></rect>'
        )
    for end, x, anchor in ((0, left, "start"), (-1, left + size, "end")):
        parts.append(
            f'<text x="{x}" y="{top + size + 16}" text-anchor="{anchor}">{said(factors[across].levels[end])}</text>'
        )
    for end, y in ((0, top + size), (-1, top + 12)):
        parts.append(f'<text x="{left - 6}" y="{y}" text-anchor="end">{said(factors[up].levels[end])}</text>')
    parts.append(
        f'<text x="{left + size / 2}" y="{top + size + 32}" text-anchor="middle">{escape(factors[across].path)}</text>'
        f'<text transform="translate(14 {top + size / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(factors[up].path)}</text>"
        f'<text x="{left + size + 24}" y="{top + 20}">light: {escape(about.shown(low))}</text>'
        f'<text x="{left + size + 24}" y="{top + 40}">dark: {escape(about.shown(high))}</text></svg>'
    )
    return "".join(parts)


def residuals(analysis: Analysis) -> str:
    """Residuals over predictions, and in the order in which the runs were taken."""
    return "".join(
        _scatter(x, analysis.residuals, title)
        for x, title in (
            (analysis.fitted, "predicted, logarithm" if analysis.log else "predicted"),
            (np.arange(len(analysis.residuals), dtype=np.float64), "run, in the order taken"),
        )
    )


Panel = tuple[Factor, list[tuple[str, Vector, Vector, int]]]


def _panels(panels: Sequence[Panel], analysis: Analysis) -> str:
    """Small plots side by side, three in a row, over one common vertical scale."""
    values = np.concatenate([line[2] for _, lines in panels for line in lines])
    margin = 0.05 * max(float(np.ptp(values)), 1e-12)
    low, high = float(values.min()) - margin, float(values.max()) + margin
    width, height, left, gap = 178, 120, 64, 14
    rows = -(-len(panels) // 3)
    parts = [_open(rows * (height + 64) + 10, f"{analysis.response} along factors")]
    for index, (factor, lines) in enumerate(panels):
        x0, y0 = left + index % 3 * (width + gap), 14 + index // 3 * (height + 64)
        y = _linear(low, high, y0 + height, y0)
        for tick in ticks(low, high, False):
            parts.append(f'<line class="grid" x1="{x0}" x2="{x0 + width}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
            if index % 3 == 0:
                parts.append(f'<text x="{x0 - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>')
        x = _linear(-1, 1, x0 + 6, x0 + width - 6)
        for title, along, found, colour in lines:
            path = "L".join(f"{x(a):.1f} {y(float(v)):.1f}" for a, v in zip(along.tolist(), found, strict=True))
            parts.append(f'<path class="c{colour}" d="M{path}"><title>{escape(title)}</title></path>')
        parts.append(
            f'<text x="{x0}" y="{y0 + height + 14}">{escape(said(factor.levels[0]))}</text>'
            f'<text x="{x0 + width}" y="{y0 + height + 14}" text-anchor="end">{escape(said(factor.levels[-1]))}</text>'
            f'<text x="{x0 + width / 2}" y="{y0 + height + 28}" text-anchor="middle">{escape(factor.name)}</text>'
        )
        if len(lines) > 1:
            parts += [
                f'<text class="t{colour}" x="{x0 if colour == 1 else x0 + width}" y="{y0 + height + 43}" '
                f'text-anchor="{"start" if colour == 1 else "end"}">{escape(title)}</text>'
                for title, _, _, colour in lines
            ]
    return "".join(parts) + "</svg>"


def _scatter(x: Vector, y: Vector, title: str) -> str:
    height, left = 190, 64
    place_x = _linear(float(x.min()), float(x.max()), left + 8, _WIDTH - 16)
    reach = max(float(np.abs(y).max()), 1e-12) * 1.1
    place_y = _linear(-reach, reach, height - 40, 8)
    parts = [_open(height, f"residuals over {title}")]
    for tick in ticks(-reach, reach, False):
        parts.append(
            f'<line class="grid" x1="{left}" x2="{_WIDTH - 10}" y1="{place_y(tick):.1f}" y2="{place_y(tick):.1f}"/>'
            f'<text x="{left - 6}" y="{place_y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    parts += [
        f'<circle cx="{place_x(a):.1f}" cy="{place_y(b):.1f}" r="3"/>'
        for a, b in zip(x.tolist(), y.tolist(), strict=True)
    ]
    return (
        "".join(parts) + f'<text x="{_WIDTH / 2}" y="{height - 12}" text-anchor="middle">{escape(title)}</text></svg>'
    )


def _open(height: float, title: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'


def _linear(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def short(label: str) -> str:
    """A term by the last parts of its paths, where there is little room."""
    return " × ".join(part.rsplit(".", 1)[-1] for part in label.split(" × "))


def _effect(estimate: float, analysis: Analysis) -> str:
    return f"{math.exp(min(estimate, 700)) - 1:+.1%}" if analysis.log else f"{estimate:+.3g}"
