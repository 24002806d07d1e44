"""The search for the design that answers a question.

Of a design counts what it serves for its price. Where a rate is asked, whole replicas serve it: one of eight devices
may be the best for its price and four times as much as is needed. So designs of fewer devices are searched, too, where
theory leaves it possible that fewer devices in all serve the rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from math import ceil, inf

from armillary.errors import ArmillaryError
from armillary.plan.ahead import Outlook
from armillary.plan.budget import within
from armillary.plan.crew import Crew
from armillary.plan.designs import Design
from armillary.plan.reached import Reached
from armillary.plan.search import DOUBT, Found, Search
from armillary.plan.trials import Trials


def sought(trials: Trials, crew: Crew) -> Found[Design]:
    """What the search finds; first of its ranking stands the design to take.

    Raises ArmillaryError: as `Search.run`; CANNOT_FIT where the budget buys no design.
    """
    designs = within(trials, trials.designs)
    found = _search(trials, crew, designs)
    rate = trials.question.rate
    best, knee = found.ranking[0]
    if rate is None or knee.rate <= 0:
        return found
    ratio = knee.rate / trials.expected(best)  # as the search has it: how far theory and simulation differ
    for devices in sorted({design.devices for design in designs if design.devices < best.devices}):
        smaller = [design for design in designs if design.devices == devices]
        most = max((_expected(trials, design) for design in smaller), default=0.0)
        if most <= 0 or devices * ceil(rate / (ratio * most * DOUBT)) > _spent(found, rate)[0]:
            continue
        with suppress(ArmillaryError):  # none of these can be simulated
            other = _search(trials, crew, smaller)
            found = _joined(other, found) if _spent(other, rate) < _spent(found, rate) else _joined(found, other)
    return found


def _search(trials: Trials, crew: Crew, designs: Sequence[Design]) -> Found[Design]:
    """With processors that have nothing else to do ahead of it."""

    def price(design: Design) -> float:
        return design.devices

    outlook = Outlook(designs, trials.expected, price, trials.same)

    def each(_: Callable[..., bool], questions: Sequence[tuple[Design, float, int]]) -> Iterator[bool]:
        found = crew.each(_asked, questions, lambda count: outlook.next(questions, count))
        for question, (held, reached) in zip(questions, found, strict=True):
            trials.reached[question] = reached
            outlook.told(question, held)
            yield held

    return Search(trials, price, each, trials.same).run(designs, trials.expected)


def _asked(trials: Trials, asked: tuple[Design, float, int]) -> tuple[bool, Reached]:
    return trials(*asked), trials.reached[asked]


def _expected(trials: Trials, design: Design) -> float:
    try:
        return trials.expected(design)
    except ArmillaryError:
        return 0.0


def _spent(found: Found[Design], rate: float) -> tuple[float, float]:
    """How many devices serve a rate by the best design, and how little each of them could: of as many, those that serve
    more are better."""
    design, knee = found.ranking[0]
    if knee.rate <= 0:
        return inf, 0.0
    return design.devices * ceil(rate / knee.rate), -knee.rate / design.devices


def _joined(first: Found[Design], second: Found[Design]) -> Found[Design]:
    """Both, the first's best before the second's."""
    known = {**second.known, **first.known}
    unlikely = dict.fromkeys([*first.unlikely, *second.unlikely])
    return Found(
        ranking=[*first.ranking, *(each for each in second.ranking if each[0] not in dict(first.ranking))],
        refused={**second.refused, **first.refused},
        unlikely=[design for design in unlikely if design not in known],
        known=known,
        trials=first.trials + second.trials,
    )
