"""How many replicas are wanted."""

from __future__ import annotations

import math

import pytest

from armillary.core.scaling import Brake, ByForecast, ByQueue, BySlo, Scaler, Sight
from armillary.errors import ArmillaryError


def sight(now: float = 0.0, **known: float) -> Sight:
    values = {"arrived": 0, "finished": 0, "late": 0, "outstanding": 0, "replicas": 1, **known}
    return Sight(now, 10.0, **values)  # type: ignore[arg-type]


def test_by_queue_every_replica_has_at_most_its_share() -> None:
    scaler = ByQueue(8)
    assert [scaler.wanted(sight(outstanding=n)) for n in (0, 8, 9, 80)] == [0, 1, 2, 10]


def test_by_slo_grows_while_late_and_shrinks_to_what_was_borne() -> None:
    scaler = BySlo(most_late=0.05, step=0.5)
    assert scaler.wanted(sight(finished=100, late=5, outstanding=40, replicas=4)) == 4
    assert scaler.wanted(sight(finished=100, late=6, outstanding=80, replicas=4)) == 6
    assert (
        scaler.wanted(sight(finished=100, late=0, outstanding=45, replicas=6)) == 6
    )  # 9 for each of 5: as many as bore it
    assert scaler.wanted(sight(finished=100, late=0, outstanding=30, replicas=6)) == 5
    assert scaler.wanted(sight(finished=0, late=0, outstanding=0, replicas=1)) == 1


def test_a_forecast_is_ahead_of_a_ramp_and_level_on_a_level() -> None:
    scaler = ByForecast(rate_per_replica=2.0, ahead_s=60.0, memory_s=40.0, margin=0.0)
    for _ in range(40):
        level = scaler.wanted(sight(arrived=100))
    assert level == 5
    for period in range(40):
        ramp = scaler.wanted(sight(arrived=100 + 10 * period))  # one request a second more every 10 s
    now, then = 10 + 39, 10 + 39 + 6
    assert ramp == math.ceil(then / 2.0) > math.ceil(now / 2.0)


def test_a_forecast_that_was_wrong_keeps_a_margin() -> None:
    def last(margin: float) -> int:
        scaler = ByForecast(rate_per_replica=1.0, ahead_s=0.0, margin=margin)
        return [scaler.wanted(sight(arrived=100 + 80 * (-1) ** period)) for period in range(200)][-1]

    assert last(2.0) > last(1.0) > last(0.0)


class Says:
    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    def wanted(self, sight: Sight) -> int:
        return self.numbers.pop(0)


def test_the_brake_lets_grow_at_once_and_shrink_after_a_calm() -> None:
    scaler: Scaler = Brake(Says(3, 9, 1, 1, 4, 1, 1, 0, 0), least=1, most=6, calm_s=25.0)
    replicas, found = 1, []
    for period in range(9):
        replicas = scaler.wanted(sight(now=10.0 * period, replicas=replicas))
        found.append(replicas)
    assert found == [3, 6, 6, 6, 4, 4, 4, 1, 1]


def test_what_cannot_be_meant_is_refused() -> None:
    for wrong in (
        lambda: ByQueue(0),
        lambda: BySlo(most_late=1.0),
        lambda: ByForecast(0.0, 1.0),
        lambda: Brake(ByQueue(1), 3, 2, 0.0),
        lambda: Brake(ByQueue(1), 1, 2, -1.0),
    ):
        with pytest.raises(ArmillaryError, match="given"):
            wrong()
