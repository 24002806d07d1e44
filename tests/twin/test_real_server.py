"""What the comparison of profiles with a real server calls a deviation and a knee's interval."""

from __future__ import annotations

import pytest
from claims.real_server import Comparison, Found

from armillary.twin.fitted import FittedCost
from armillary.twin.profile import shipped_profile

COST = FittedCost(shipped_profile())


def case(rate: float, p90: float, machines: tuple[float, float], chance: list[float], real: list[float]) -> Found:
    def of(value: float) -> dict[str, float]:
        return {"ttft": 0.1, "tpot": 0.01, "rate": 1.0, "p90": value}

    slow, fast = machines
    runs, bounds = [of(one) for one in real], (of(slow), of(fast))
    return Found("chat", rate / 10, rate, 9, runs, [of(0.9 * p90), of(1.1 * p90)], chance, bounds, 0.0)


def knees(chance: tuple[list[float], list[float]]) -> Comparison:
    """Whose p90 of first tokens passes 0.4 s at about 10 requests a second, and in reality at 8.6."""
    low = case(8.0, 0.2, (0.3, 0.15), chance[0], [0.3, 0.35, 0.4, 0.35])
    return Comparison([low, case(12.0, 0.8, (1.0, 0.5), chance[1], [0.8, 0.8, 0.8, 0.8])], [COST], [[]])


def test_a_knee_lies_in_what_the_error_and_chance_leave_possible() -> None:
    sure = knees(([0.2] * 12, [0.8] * 12)).knees("chat")
    assert sure.twin == pytest.approx(9.8, abs=0.3) and sure.real == pytest.approx(8.65, rel=0.01)
    low, high = sure.between
    assert low is not None and high is not None and 8.9 < low < 9.0 < 10.0 < high and not sure.inside
    unsure = knees(([0.1, 0.2, 0.3] * 4, [0.5, 0.8, 1.1] * 4)).knees("chat")
    assert unsure.between[0] is not None and unsure.between[0] < low and unsure.inside
