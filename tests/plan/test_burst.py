"""A burst is twice the rate for a minute, no sooner and no longer, whatever is simulated to warm up; and what is
concluded from a part of it is what the whole of it does."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from armillary.deployment import build
from armillary.measure.slo import Slo
from armillary.measure.synthesis import WorkloadSpec
from armillary.plan import burst as bursts
from armillary.plan.burst import Burst, _moved, burst
from armillary.plan.designs import Design
from armillary.plan.question import Question
from armillary.plan.steady_load import Pace, steady_load
from armillary.plan.trials import Trials

PACE = Pace(token_s=0.01, prompt_s=1e-5, answer_s=3.0)
FEW, ALL = 3_000, 10**9
"""Requests of a burst that are simulated."""


@pytest.mark.parametrize("changes", [{"workload": "chat"}, {"output_length": "200"}])
def test_what_is_measured_begins_when_it_should(changes: dict[str, str]) -> None:
    load = steady_load(WorkloadSpec(requests=600, rate=20.0, **changes), PACE)
    items = _moved(load, 3.0, 100.0, "burst-")
    due = np.array([item.arrival for item in items])
    assert (np.diff(due) >= 0).all() and len(items) == len(load.workload)
    assert due[load.before :].min() >= 100 and due[load.before :].max() <= 136
    assert 97 <= due[due >= 50].min() < 98  # with the ramp right before it
    filling = due[due < 50]
    assert len(filling) == (0 if "output_length" in changes else pytest.approx(load.before - 60, abs=25))
    assert all(item.id.startswith("burst-") for item in items)


@cache
def trials(waiting: int) -> Trials:
    """A machine that serves some hundreds of requests a second, as much as one can simulate for a minute."""
    engine = {"max_running": 4, "max_step_tokens": 512, "max_waiting": waiting}
    spec = WorkloadSpec(prompt_length="uniform:50,150", output_length="uniform:5,15")
    return Trials(Question(build(None, engine=engine), "h100", spec, Slo.parse("ttft p95 500ms, tpot p95 50ms")))


def does(monkeypatch: pytest.MonkeyPatch, most: int, share: float, waiting: int) -> Burst:
    """What twice a share of the capacity does."""
    monkeypatch.setattr(bursts, "MOST", most)
    monkeypatch.setattr(bursts, "ENOUGH", min(most, 4_000))
    own = trials(waiting)
    design = Design(1, 4, 512)
    return burst(own, (design, share * own._theory(design).capacity))


def test_a_machine_that_keeps_up_is_told_from_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    part, whole = (does(monkeypatch, most, 0.35, 1024) for most in (FEW, ALL))
    assert part.simulated_s < 13 and whole.simulated_s == 60
    assert (part.lost, part.recovery_s, part.growing) == (whole.lost, whole.recovery_s, False) == (0, 0, False)
    assert part.ttft_p95 == pytest.approx(whole.ttft_p95, rel=0.15)


def test_a_queue_that_is_full_stays_full(monkeypatch: pytest.MonkeyPatch) -> None:
    part, whole = (does(monkeypatch, most, 0.8, 256) for most in (FEW, ALL))
    assert not part.growing and part.simulated_s < 10
    assert part.ttft_p95 == pytest.approx(whole.ttft_p95, rel=0.05)
    assert part.lost == pytest.approx(whole.lost, abs=0.03) and whole.lost > 0.3
    assert part.recovery_s == pytest.approx(whole.recovery_s, abs=1.5)


@pytest.mark.slow
def test_a_queue_that_grows_goes_on_growing(monkeypatch: pytest.MonkeyPatch) -> None:
    part, whole = (does(monkeypatch, most, 0.7, 10**6) for most in (FEW, ALL))
    assert part.growing and not whole.growing and part.lost == whole.lost == 0
    assert part.ttft_p95 == pytest.approx(whole.ttft_p95, rel=0.15)
    assert part.recovery_s == whole.recovery_s == np.inf


@pytest.mark.slow
def test_a_queue_that_grows_is_full_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    part, whole = (does(monkeypatch, most, 0.7, 4096) for most in (FEW, ALL))
    assert part.growing
    assert part.ttft_p95 == pytest.approx(whole.ttft_p95, rel=0.1)
    assert part.lost == pytest.approx(whole.lost, abs=0.05)
