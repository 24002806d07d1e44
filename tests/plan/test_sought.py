"""What a question makes of the search: no more devices than a rate needs, and none that a budget does not buy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from armillary.errors import ArmillaryError, Code
from armillary.plan.crew import Crew
from armillary.plan.designs import Design
from armillary.plan.search import Found
from armillary.plan.sought import sought
from armillary.plan.trials import Trials

KNEES = {1: 0.0, 2: 2.0, 4: 8.0, 8: 34.0}
"""Devices of a replica -> requests a second: a model that hardly fits two devices."""


class Fake:
    """Trials of designs whose knees are known, twice as good with 32 sequences as with 16."""

    def __init__(self, rate: float | None, budget: float | None = None, theory: float = 1.0) -> None:
        self.designs = [Design(devices, running, 512) for devices in (8, 4, 2, 1) for running in (32, 16)]
        price = SimpleNamespace(rate=rate, budget=budget, price_of=lambda hardware: (1.0, 1.0))
        self.question, self.reached, self._theory = price, dict[Any, Any](), theory

    def knee(self, design: Design) -> float:
        return KNEES[design.devices] * design.max_running / 32

    def expected(self, design: Design) -> float:
        if design.devices == 1:
            raise ArmillaryError(Code.MEMORY, "weights must fit")
        return self._theory * self.knee(design)

    def deployed(self, design: Design) -> Any:
        self.expected(design)
        return SimpleNamespace(kinds=[SimpleNamespace(hardware=SimpleNamespace(name="h"))])

    def same(self, question: Any, other: Design) -> bool:
        return False

    def __call__(self, design: Design, rate: float, seed: int) -> bool:
        self.reached[design, rate, seed] = None
        return rate <= self.knee(design)

    def each(self, do: Callable[..., Any], asked: Sequence[Any], ahead: object = None) -> Iterator[Any]:
        return (do(self, one) for one in asked)

    def sought(self) -> Found[Design]:
        return sought(cast(Trials, self), cast(Crew, self))


@pytest.mark.parametrize(
    ("rate", "devices"),
    [(None, 8), (1.0, 2), (1.9, 2), (3.0, 4), (7.0, 4), (9.0, 8), (30.0, 8), (35.0, 8)],
    ids=str,
)
def test_a_rate_takes_no_more_devices_than_it_needs(rate: float | None, devices: int) -> None:
    fake = Fake(rate)
    found = fake.sought()
    assert found.ranking[0][0] == Design(devices, 32, 512)
    assert found.ranking[0][1].rate == pytest.approx(KNEES[devices], rel=0.03)
    assert Design(1, 32, 512) in found.refused and Design(1, 16, 512) in found.refused
    assert len({design for design, _ in found.ranking}) == len(found.ranking), "none is listed twice"
    assert not set(found.unlikely) & found.known.keys()


def test_designs_of_which_theory_expects_too_little_are_not_searched() -> None:
    first = Fake(None).sought().trials
    assert Fake(30.0).sought().trials == first, "three replicas of four devices would be more than one of eight"
    assert Fake(9.0).sought().trials > first, "one of four might serve it, if theory is off by as much as it may be"
    for theory in (0.2, 5.0):
        assert Fake(7.0, theory=theory).sought().ranking[0][0].devices == 4, "theory that is off by as much of all"
        assert Fake(30.0, theory=theory).sought().ranking[0][0].devices == 8


def test_what_a_budget_does_not_buy_is_not_sought() -> None:
    assert Fake(None, budget=5.0).sought().ranking[0][0].devices == 4
    assert Fake(2.0, budget=5.0).sought().ranking[0][0].devices == 2
    with pytest.raises(ArmillaryError, match=r"at least the price of one replica, 2.00 dollars an hour, given 1.5"):
        Fake(None, budget=1.5).sought()
