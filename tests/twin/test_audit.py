"""Simulations are judged as measured runs are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from armillary.core.config import SchedulerConfig
from armillary.deployment import FailureSettings, FleetSettings, ReplicaSettings
from armillary.measure.laws import Bound
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.measure.workload import Workload
from armillary.twin.audit import audit
from armillary.twin.cost import IdealCost
from armillary.twin.fleet import FleetResult, simulate_fleet
from armillary.twin.member import ReplicaPlan

# One request at a time, of one token in one step: a queue with one server.
CONFIG = SchedulerConfig(num_blocks=64, max_context=64, max_running=1, max_waiting=10**6, prefix_cache=False)


def load(rate: float, requests: int = 800, output: str = "1", **more: object) -> Workload:
    return synthesise(WorkloadSpec(requests=requests, rate=rate, prompt_length="8", output_length=output, **more))


def served(workload: Workload, until: float = float("inf"), **settings: object) -> FleetResult:
    def build(group: ReplicaSettings) -> ReplicaPlan:
        return ReplicaPlan(CONFIG, IdealCost(0.1))

    fleet = FleetSettings(replicas=(ReplicaSettings(count=1),), **settings)  # type: ignore[arg-type]
    return simulate_fleet(fleet, build, workload, until=until)


def test_a_stable_run_is_steady_and_keeps_its_laws() -> None:
    found = audit(served(load(rate=5.0)))
    assert found.steadiness.verdict == "steady"
    assert [law.name for law in found.laws] == ["little", "forced flow", "bottleneck"]
    assert all(law.holds(1e-6) for law in found.laws)
    bound = found.laws[-1]
    assert isinstance(bound, Bound)
    assert bound.limit == pytest.approx(10.0), "a tenth of a second each"


def test_an_overloaded_run_is_unstable() -> None:
    found = audit(served(load(rate=13.0)))
    assert found.steadiness.verdict == "unstable"
    assert not found.steadiness.has_percentiles
    assert all(law.holds(1e-6) for law in found.laws), "laws hold under overload too"


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
