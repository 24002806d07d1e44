"""What an engine and a server are loaded with while they are measured."""

from __future__ import annotations

from itertools import islice

import pytest

from armillary.twin.crowd import BRIEF, KINDS, Crowd, Kind

from .test_fitted import known_cost


@pytest.mark.parametrize("kind", KINDS)
def test_requests_are_of_their_kind(kind: Kind) -> None:
    for prompt, answer in islice(Crowd(64, known_cost(), 4096, 300.0, kind).requests(0), 500):
        assert kind.shortest <= prompt <= kind.longest and 2 <= answer <= 1024


def test_what_requests_cost_beside_the_engine_takes_of_the_time() -> None:
    """Without it, brief requests to a server would go on for several times as long as they may."""
    alone, served = Crowd(64, known_cost(), 4096, 30.0, BRIEF), Crowd(64, known_cost(), 4096, 30.0, BRIEF, 0.1)
    most = 30.0 / 0.1  # requests that a server gets through which takes so long for each, one after another
    assert len(served.workload(0)) < most < len(alone.workload(0))


def test_strangers_come_by_chance_for_as_long_as_said() -> None:
    workload = Crowd(64, known_cost(), 4096, 30.0).strangers(1, 20.0)
    arrivals = [item.arrival or 0.0 for item in workload.items]
    assert arrivals == sorted(arrivals) and arrivals[-1] < 30.0
    assert len(workload) == pytest.approx(600, rel=0.15)


def test_a_stranger_comes_in_time_however_seldom_they_come() -> None:
    (only,) = Crowd(64, known_cost(), 4096, 30.0).strangers(1, 1e-6).items
    assert only.arrival == 30.0
