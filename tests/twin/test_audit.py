"""Simulations are judged as measured runs are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from armillary.core.config import SchedulerConfig
from armillary.deployment import FailureSettings, FleetSettings, ReplicaSettings, ScalingSettings
from armillary.measure.laws import Bound, Law
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.measure.workload import Workload
from armillary.plan.steady_load import Load, Pace, steady_load
from armillary.twin.audit import audit
from armillary.twin.census import Census
from armillary.twin.cost import CostModel, IdealCost
from armillary.twin.executor import VirtualExecutor
from armillary.twin.fleet import simulate_fleet
from armillary.twin.fleet_result import FleetResult
from armillary.twin.member import ReplicaPlan
from armillary.twin.outcome import Recorder
from armillary.twin.work import StepWork

# One request at a time, of one token in one step: a queue with one server.
CONFIG = SchedulerConfig(num_blocks=64, max_context=64, max_running=1, max_waiting=10**6, prefix_cache=False)


def load(rate: float, requests: int = 800, output: str = "1", **more: object) -> Workload:
    return synthesise(WorkloadSpec(requests=requests, rate=rate, prompt_length="8", output_length=output, **more))


BATCHED = SchedulerConfig(num_blocks=400, max_context=400, max_step_tokens=64, max_running=8, max_waiting=10**6)


def served(
    workload: Workload,
    until: float = float("inf"),
    config: SchedulerConfig = CONFIG,
    cost: CostModel = IdealCost(0.1),
    replicas: int = 1,
    **settings: object,
) -> FleetResult:
    def build(group: ReplicaSettings) -> ReplicaPlan:
        return ReplicaPlan(config, cost)

    fleet = FleetSettings(replicas=(ReplicaSettings(count=replicas),), **settings)  # type: ignore[arg-type]
    return simulate_fleet(fleet, build, workload, until=until)


def steady(leap: bool = True) -> tuple[FleetResult, Load]:
    """Conversations on two replicas, measured in a window after what came before."""
    spec = WorkloadSpec(rate=8.0, requests=400, prompt_length="uniform:20,60", output_length="uniform:5,40", turns="3",
                        think=2.0, context_limit=390)  # fmt: skip
    load = steady_load(spec, Pace(0.05, 1e-3, 2.0))

    def build(group: ReplicaSettings) -> ReplicaPlan:
        return ReplicaPlan(BATCHED, IdealCost(0.01, 1e-3, between=2e-3))

    fleet = FleetSettings(replicas=(ReplicaSettings(count=2),))
    return simulate_fleet(fleet, build, load.workload, leap=leap, since=load.since), load


class Read(IdealCost):
    """Requests are read one after the other before an engine has them."""

    def request_s(self, prompt_tokens: int) -> float:
        return 0.01


NAMES = ["little", "utilisation", "forced flow", "bottleneck"]


def test_a_stable_run_is_steady_and_keeps_its_laws() -> None:
    found = audit(served(load(rate=5.0)))
    assert found.steadiness.verdict == "steady"
    assert [law.name for law in found.laws] == NAMES
    assert all(law.holds(1e-6) for law in found.laws)
    bound = found.laws[-1]
    assert isinstance(bound, Bound)
    assert bound.limit == pytest.approx(10.0), "a tenth of a second each"


def test_an_overloaded_run_is_unstable() -> None:
    found = audit(served(load(rate=13.0)))
    assert found.steadiness.verdict == "unstable"
    assert not found.steadiness.has_percentiles
    assert all(law.holds(1e-6) for law in found.laws), "laws hold under overload too"


@pytest.mark.parametrize("leap", [True, False])
def test_a_window_of_a_run_keeps_its_laws(leap: bool) -> None:
    whole, load = steady(leap)
    assert load.before > 20 and load.begins > 2
    found = load.measured(whole)
    laws = audit(found).laws
    assert [law.name for law in laws] == NAMES
    assert all(law.holds(1e-6) for law in laws)
    little, used = laws[0], laws[1]
    assert isinstance(little, Law) and isinstance(used, Law)
    # By hand: of those that count, how many were there at each of many moments.
    run, moments = found.requests, np.linspace(0, found.duration_s, 200_001)
    there = np.searchsorted(np.sort(run.due), moments, "right") - np.searchsorted(np.sort(run.end), moments, "right")
    assert little.left == pytest.approx(there.mean(), rel=1e-3)
    # What came before makes replicas busy, too, but not in the window.
    before = sum(use.steps.busy_s + use.steps.between_s for use in whole.replicas) - whole.counts.step_s
    assert before > 1 and 0.2 < used.left < 1


def test_what_is_answered_while_requests_come_is_their_rate() -> None:
    """In a window that begins with as many under way as it ends with; the time until those have ended is none of it."""
    whole, load = steady()
    arrival = load.workload.columns.arrival
    assert arrival is not None
    coming = load.measured(whole).requests.due
    assert whole.counts.ended / whole.counts.coming_s == pytest.approx(len(coming) / np.ptp(coming), rel=0.05)
    ends = whole.requests.end
    last = load.begins + whole.counts.coming_s
    assert whole.counts.ended == ((ends > load.begins) & (ends <= last)).sum()


@pytest.mark.parametrize("config", [CONFIG, BATCHED])
def test_laws_hold_whatever_happens(config: SchedulerConfig) -> None:
    cost, opening = Read(0.02, 1e-3, between=5e-3), Read(0.02, 1e-3, between=5e-3)
    opening.first_s = 0.03
    few = replace(config, max_waiting=3)
    several = [
        served(load(8.0, 300, output="9"), config=config, cost=cost, replicas=2),
        served(load(3.0, 200, output="9"), 30.0, config, cost),
        served(load(50.0, 200, output="9"), config=few, cost=cost),
        served(load(8.0, 200, output="9", turns="2", think=0.5), config=config, cost=cost),
        served(synthesise(WorkloadSpec(requests=200, users=5, think=0.1, prompt_length="8")), config=config, cost=cost),
        served(load(3.0, 100, output="9"), config=config, cost=cost, replicas=2,
               failures=FailureSettings(every_s=5.0, repair_s=0.5)),
        served(load(60.0, 400, output="9"), config=config, cost=cost,
               scaling=ScalingSettings(by="queue", least=1, most=4, period_s=1.0, calm_s=2.0, per_replica=2.0)),
        *(served(load(8.0, 200, output=output, **more), until, config=config, cost=opening, replicas=2)
          for output in ("1", "2", "9") for until in (float("inf"), 20.0)
          for more in ({}, {"turns": "2", "think": 0.5})),
    ]  # fmt: skip
    assert several[5].restarted and len(several[6].replicas) > 1
    assert not several[2].requests.ok.all() and "forced flow" in [law.name for law in audit(several[2]).laws]
    for number, run in enumerate(several):
        laws = audit(run).laws
        assert {"little", "utilisation", "bottleneck"} <= {law.name for law in laws}, number
        assert all(law.holds(1e-6) for law in laws), (number, [str(law) for law in laws])


def test_a_wrong_count_breaks_its_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two sides of a law are counted in different places, so what one of them gets wrong is seen."""

    def broken() -> set[str]:
        whole, load = steady()
        return {law.name for law in audit(load.measured(whole)).laws if not law.holds()}

    assert broken() == set()
    ended, ask = Recorder.ended, VirtualExecutor._ask
    with monkeypatch.context() as patch:  # answers are said to have ended sooner than they did

        def early(recorder: Recorder, row: int, at: float, *more: Any) -> float:
            return ended(recorder, row, at - 0.1, *more) + 0.1

        patch.setattr(Recorder, "ended", early)
        assert broken() == {"little"}
    with monkeypatch.context() as patch:  # one departure in twenty is not noticed
        left = Census.left

        def forgetful(census: Census, row: int, *more: Any) -> None:
            if row % 20:
                left(census, row, *more)

        patch.setattr(Census, "left", forgetful)
        assert broken() == {"little"}
    with monkeypatch.context() as patch:  # some steps are added up twice

        def twice(executor: VirtualExecutor, work: StepWork) -> tuple[float, float]:
            if executor.totals.steps % 10 == 0:
                executor.totals.steps += 1
                executor.totals.busy_s += 0.05
                executor.totals.rows += 1
            return ask(executor, work)

        patch.setattr(VirtualExecutor, "_ask", twice)
        assert broken() == {"utilisation", "forced flow"}


def test_requests_that_were_never_sent_are_not_judged() -> None:
    # Twins of a session wait for the turn before, which an end of time may leave without one.
    result = served(load(rate=5.0, turns="2", think=3.0), until=60.0)
    assert np.isnan(result.requests.due).any() or len(result.requests) < 800
    assert audit(result).steadiness.verdict in {"steady", "short"}


def test_work_that_a_failure_lost_is_not_held_against_the_flow_of_tokens() -> None:
    failing = served(load(0.5, 100, output="9"), failures=FailureSettings(every_s=5.0, repair_s=0.1))
    assert failing.restarted
    assert "forced flow" not in [law.name for law in audit(failing).laws]
    hidden = audit(replace(failing, restarted=0)).laws
    assert [law.holds(1e-9) for law in hidden if law.name == "forced flow"] == [False], "which it would break"


def test_classes_reach_the_columns() -> None:
    workload = load(rate=5.0, slo_classes="quick 1: ttft p95 1s; slow 3: ttft p95 1min")
    run = served(workload).requests
    assert run.slo_class is not None
    named = [run.slo_classes[code] for code in run.slo_class.tolist()]
    assert named == [item.slo_class for item in workload.items]
