"""Line charts as inline SVG, coloured by the page's style sheet so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from armillary.measure.series import Points

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 46


@dataclass(frozen=True)
class Line:
    """One curve. `colour` is the number of a colour of the style sheet, from 1; `dots` for its points alone."""

    label: str
    points: Points
    colour: int
    steps: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    """What an axis shows; `log` for a logarithmic one."""

    label: str
    log: bool = False
    top: float | None = None
    """The end of the axis, where it should not follow the data."""


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Round positions from about `low` to about `high`."""
    if log:
        found = [
            step * 10.0**power
            for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for step in (1, 2, 5)
        ]
        inside = [tick for tick in found if low * 0.999 <= tick <= high * 1.001]
        decades = [tick for tick in inside if math.isclose(math.log10(tick), round(math.log10(tick)), abs_tol=1e-9)]
        return decades if len(inside) > 9 and len(decades) >= 2 else inside
    raw = (high - low) / 5 or 1.0
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's label."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def chart(lines: Sequence[Line], x: Axis, y: Axis) -> str:
    """An `<svg>` element, or a sentence where there is nothing to draw."""
    drawn = [line for line in lines if line.points]
    if not drawn:
        return '<p class="empty">Nothing was recorded for this plot.</p>'
    xs = _scale([p[0] for line in drawn for p in line.points], x, LEFT, WIDTH - RIGHT)
    ys = _scale([p[1] for line in drawn for p in line.points], y, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y.label)} against {escape(x.label)}">'
    ]
    for tick in ticks(*xs.range, x.log):
        at = xs.place(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(tick)}</text>')
    for tick in ticks(*ys.range, y.log):
        at = ys.place(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x.label)}</text>'
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y.label)}</text>'
    )
    for line in drawn:
        places = [(xs.place(px), ys.place(py)) for px, py in line.points]
        if line.dots:
            title = f"<title>{escape(line.label)}</title>"
            parts += [
                f'<circle class="c{line.colour}" cx="{px:.1f}" cy="{py:.1f}" r="3.5">{title}</circle>'
                for px, py in places
            ]
            continue
        path = _path(places, line.steps)
        parts.append(f'<path class="c{line.colour}" d="{path}"><title>{escape(line.label)}</title></path>')
    parts.append("</svg>")
    legend = "".join(f'<span><i class="c{line.colour}"></i>{escape(line.label)}</span>' for line in drawn)
    return "".join(parts) + f'<div class="legend">{legend}</div>'


@dataclass(frozen=True)
class _Scale:
    range: tuple[float, float]
    pixels: tuple[float, float]
    log: bool

    def place(self, value: float) -> float:
        low, high = self.range
        if self.log:
            share = (math.log(max(value, low)) - math.log(low)) / (math.log(high) - math.log(low))
        else:
            share = (value - low) / (high - low)
        return self.pixels[0] + share * (self.pixels[1] - self.pixels[0])


def _scale(values: Sequence[float], axis: Axis, start: float, end: float) -> _Scale:
    if axis.log:
        positive = [value for value in values if value > 0] or [1.0]
        low, high = min(positive), max(positive)
        # A few tiny values (text that arrived in one packet) must not squeeze all others together.
        low = max(low, high / 1e5)
        if high / low < 2:
            low, high = low / 1.5, high * 1.5
        return _Scale((low, high), (start, end), True)
    high = axis.top if axis.top is not None else max(values) * 1.05
    return _Scale((0.0, high if high > 0 else 1.0), (start, end), False)


def _path(points: Points, steps: bool) -> str:
    commands = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for px, py in points[1:]:
        commands.append(f"H{px:.1f}V{py:.1f}" if steps else f"L{px:.1f} {py:.1f}")
    return "".join(commands)
