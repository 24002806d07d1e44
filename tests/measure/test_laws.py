"""Operational laws hold on runs that are whole, and fail on runs that are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from armillary.measure.laws import Bound, Law, RunTotals, check, client_totals
from armillary.measure.outcomes import Outcomes


def one_server(count: int = 500, seed: int = 0) -> tuple[Outcomes, float, float]:
    """A first-come-first-served run, its busy time and its end."""
    rng = np.random.default_rng(seed)
    due, work = np.cumsum(rng.exponential(1.0, count)), rng.exponential(0.7, count)
    end, free = np.zeros(count), 0.0
    for i in range(count):
        end[i] = free = max(free, due[i]) + work[i]
    whole = np.full(count, 3)
    run = Outcomes(due, end - work, end, whole, whole, whole * 0, np.ones(count, dtype=np.bool_))
    return run, float(work.sum()), float(end[-1])


def by_name(totals: RunTotals) -> dict[str, Law | Bound]:
    return {law.name: law for law in check(totals)}


def test_all_laws_hold_on_a_whole_run() -> None:
    run, busy, last = one_server()
    totals = replace(
        client_totals(run, last), busy_s=busy, steps=len(run), step_s=busy / len(run), flows={"tokens": (1500, 1500)}
    )
    found = by_name(totals)
    assert set(found) == {"little", "utilisation", "forced flow", "bottleneck"}
    assert all(law.holds(1e-9) for law in found.values())
    bound = found["bottleneck"]
    assert isinstance(bound, Bound)
    assert bound.value / bound.limit == pytest.approx(busy / last), "how much of what is possible was used"
    assert "requests/s" in str(bound)


def test_the_number_under_way_is_the_integral_by_hand() -> None:
    run, _, last = one_server(60)
    moments = np.linspace(0, last, 400_001)[:-1]
    by_hand = np.searchsorted(np.sort(run.due), moments, "right") - np.searchsorted(np.sort(run.end), moments, "right")
    assert (client_totals(run, last).area_s or 0.0) / last == pytest.approx(by_hand.mean(), rel=1e-3)


def test_lost_and_doubled_work_breaks_a_law() -> None:
    run, busy, last = one_server()
    whole = client_totals(run, last)
    lost = replace(whole, residence_s=whole.residence_s * 0.9)
    law = by_name(lost)["little"]
    assert not law.holds()
    assert "≠" in str(law)
    counted_twice = replace(whole, flows={"tokens": (1600, 1500)})
    assert not by_name(counted_twice)["forced flow"].holds()
    misdated = client_totals(run, last / 2)
    assert not by_name(misdated)["little"].holds(), "answers that came after the end of the count"
    overworked = replace(whole, busy_s=busy * 2, steps=1, step_s=busy)
    assert not by_name(overworked)["utilisation"].holds()


def test_users_bound_the_rate_by_their_thought() -> None:
    totals = RunTotals(100.0, 50, 50, 100.0, busy_s=50.0, steps=50, step_s=1.0, users=2, think_s=9.0)
    bound = by_name(totals)["bottleneck"]
    assert isinstance(bound, Bound)
    assert bound.limit == pytest.approx(2 / 10)
    assert not bound.holds(), "two users cannot ask for half a request per second"
    crowded = by_name(replace(totals, users=200))["bottleneck"]
    assert isinstance(crowded, Bound)
    assert crowded.limit == pytest.approx(1.0)


def test_a_run_of_nothing_has_no_laws() -> None:
    assert check(RunTotals(0.0, 0, 0, 0.0)) == ()
    assert check(RunTotals(10.0, 0, 0, 0.0, area_s=0.0, busy_s=0.0, steps=0, step_s=0.0))[0].holds()
