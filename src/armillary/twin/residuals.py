"""How far a fit is off, as a picture: the error of each step that was left out, over its measured time."""

from __future__ import annotations

from html import escape
from math import log10

from armillary.measure.plots import number, ticks
from armillary.twin.fitted import FittedCost

WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 46
_KINDS = (("next tokens only", "#2f6fd0"), ("prompts only", "#c7621a"), ("both", "#15887a"))


def residual_svg(cost: FittedCost) -> str:
    """A whole SVG file: designed steps, each predicted by a fit to the others."""
    steps = cost.profile.steps
    times = [step.quartile_s * 1e3 for step in steps]
    errors = [100 * error for error in cost.designed.errors]
    low, high = log10(min(times) / 1.2), log10(max(times) * 1.2)
    reach = max(10.0, max(abs(error) for error in errors) * 1.1)

    def x(milliseconds: float) -> float:
        return LEFT + (log10(milliseconds) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(error: float) -> float:
        return TOP + (reach - error) / (2 * reach) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui,sans-serif" '
        'font-size="12" fill="#5d6978"><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{LEFT}" y="16" fill="#1c2430">{escape(f"{cost.name}, fitted")}</text>',
    ]
    for tick in ticks(10**low, 10**high, True):
        parts.append(f'<path d="M{x(tick):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#e2e4e8"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(tick)}</text>')
    for tick in [side * value for value in ticks(0, reach, False) for side in (1, -1)]:
        parts.append(
            f'<path d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}" stroke="#{"98a3b3" if tick == 0 else "e2e4e8"}"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for step, time, error in zip(steps, times, errors, strict=True):
        colour = _KINDS[_kind(step.work)][1]
        parts.append(f'<circle cx="{x(time):.1f}" cy="{y(error):.1f}" r="3.5" fill="{colour}" fill-opacity="0.75"/>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">measured, ms</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">predicted without it, % off</text>'
    )
    for place, (label, colour) in enumerate(_KINDS):
        parts.append(f'<circle cx="{330 + 110 * place}" cy="27" r="3.5" fill="{colour}"/>')
        parts.append(f'<text x="{337 + 110 * place}" y="31" font-size="11">{label}</text>')
    return "".join([*parts, "</svg>\n"])


def _kind(work: tuple[int, int, int, int, int]) -> int:
    """Next tokens only, prompts only, or both."""
    sequences, tokens, rows, _, _ = work
    if tokens == sequences:
        return 0
    # Prompts are at most sixteen; more sequences than that are next tokens.
    return 1 if sequences <= 16 and rows <= sequences and tokens > 2 * sequences else 2
