"""Other machines than the predicted one, and changes that can go one way only."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from armillary.plan import doubt, whatif
from armillary.plan.change import Change
from armillary.plan.designs import Design


def test_between_two_machines_the_knee_follows_from_their_speed() -> None:
    slower = [0.8, 0.9, 1.0, 1.1, 1.25]
    found = doubt.between(100.0, slower, {0.8: 1 / 0.8, 1.25: 1 / 1.25})
    expected = doubt.replications([100 / factor for factor in slower]).of_one(5)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_a_machine_that_gains_nothing_by_speed_is_not_taken_to() -> None:
    found = doubt.between(100.0, [0.5, 0.8, 1.0, 2.0], {0.5: 1.0, 2.0: 0.6})
    assert found.value == pytest.approx((100 + 100 + 100 + 60) / 4)


def test_where_nothing_is_in_doubt_the_knee_is_as_found() -> None:
    found = doubt.between(100.0, [1.0] * 6, {})
    assert (found.low, found.value, found.high) == (100.0, 100.0, 100.0)


class Linear:
    """Trials of a design whose knee a change multiplies."""

    def __init__(self, factors: dict[str, float]) -> None:
        self.factors = factors
        self.asked: list[tuple[str, float]] = []
        self.question = SimpleNamespace(spec=SimpleNamespace(seed=0))

    def __call__(self, design: Design, rate: float, seed: int, change: Change) -> bool:
        self.asked.append((change.name, rate))
        return rate <= 10.0 * self.factors.get(change.name, 1.0)

    def requests(self, rate: float) -> int:
        return 120

    def run(self, *given: Any) -> Any:
        return SimpleNamespace(requests=SimpleNamespace(ttft=np.ones(3), tpot=np.ones(3)))

    def expected(self, design: Design) -> float:
        return 10.0 if design.prefix_cache else 4.0


def test_what_can_only_go_one_way_is_not_asked_for_the_other() -> None:
    design = Design(1, 64, 512)
    names = [change.name for change in whatif.changes(design)]
    for name, factor, first in (
        ("a device a quarter faster", 1.3, 10.4),
        ("a device a quarter faster", 1.0, 10.4),
        ("no prefix cache", 1.0, 9.6),
        ("no prefix cache", 0.5, 9.6),
        ("max_running 32", 1.0, 10.4),
    ):
        trials: Any = Linear({name: factor})
        seen = whatif.look(trials, (design, 5.0, names.index(name), 10.0))
        assert seen.knee == pytest.approx(10 * factor, rel=0.04)
        rates = [rate for _, rate in trials.asked]
        assert rates[0] == pytest.approx(first)
        assert len(rates) == (2 if name == "max_running 32" else 1) if factor == 1.0 else len(rates) > 2
    assert rates[1] == pytest.approx(9.6)


def test_where_theory_expects_a_knee_it_is_looked_for_first() -> None:
    design = Design(1, 64, 512)
    names = [change.name for change in whatif.changes(design)]
    trials: Any = Linear({"no prefix cache": 0.41})
    whatif.look(trials, (design, 5.0, names.index("no prefix cache"), 10.0))
    assert trials.asked[1][1] == pytest.approx(4.0) and len(trials.asked) <= 6
