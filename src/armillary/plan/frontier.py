"""The designs that were simulated, by what they cost and what they serve, and which of them none other beats."""

from __future__ import annotations

from html import escape
from math import inf

from armillary.measure.plots import Axis, Line, chart
from armillary.plan.designs import Design
from armillary.plan.planner import Answer


def frontier(found: Answer) -> str:
    """A Pareto chart, with what it does not show in a sentence below."""
    searched, replicas = found.searched, found.design.replicas
    price = found.question.price_of(found.deployed.kinds[0].hardware)
    each = 1.0 if price is None else sum(price) / 2
    known = searched.known.items()  # at the busiest
    knees = {design: knee.rate / found.peak for design, knee in known if knee.low > 0 and knee.high < inf}
    lost = {design: knee.high / found.peak for design, knee in known if knee.low == 0}
    best = found.knee.value / replicas
    fleet = [(each * found.design.devices * n, best * n) for n in range(1, max(2, replicas) + 1)]
    lines = [
        Line("replicas of the chosen design", fleet, 1),
        Line("no other single replica serves more for as little", _unbeaten(knees, each), 2, steps=True),
        Line("single replica, rate found", _dots(knees, each), 2, dots=True),
        Line("single replica, misses this rate already", _dots(lost, each), 3, dots=True),
    ]
    left = len(searched.unlikely)
    told = f"{len(searched.known)} designs were simulated, most of them only shortly: "
    told += f"{len(lost)} were given up at the first rate that they missed"
    told += f"; {left} were not simulated, since queueing theory expects too little of them." if left else "."
    return (
        chart(
            lines,
            Axis("devices" if price is None else "US dollars an hour"),
            Axis("requests/s within the service level"),
        )
        + f'<p class="soft">{escape(told)}</p>'
    )


def _dots(rates: dict[Design, float], each: float) -> list[tuple[float, float]]:
    return sorted((each * design.devices, rate) for design, rate in rates.items())


def _unbeaten(rates: dict[Design, float], each: float) -> list[tuple[float, float]]:
    """The highest rate for each cost, where it is higher than for any lower cost."""
    line: list[tuple[float, float]] = []
    for cost, rate in _dots(rates, each):
        if line and rate <= line[-1][1]:
            continue
        if line and line[-1][0] == cost:
            line.pop()
        line.append((cost, rate))
    return line
