"""A simulation that is ended early answers as the whole one would."""

from __future__ import annotations

import pytest

from armillary.core.config import SchedulerConfig
from armillary.deployment import FailureSettings, FleetSettings, ReplicaSettings
from armillary.measure.slo import Slo
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.twin.cost import IdealCost
from armillary.twin.fleet import simulate_fleet
from armillary.twin.member import ReplicaPlan
from armillary.twin.simulate import simulate
from armillary.twin.watch import Watch

CONFIG = SchedulerConfig(num_blocks=256, max_context=512, max_step_tokens=128, max_running=8, max_waiting=10_000)
COST = IdealCost(0.01, 0.001, between=0.001)


def build(group: ReplicaSettings) -> ReplicaPlan:
    return ReplicaPlan(CONFIG, COST)


def fleet(count: int, **more: object) -> FleetSettings:
    return FleetSettings.model_validate({"replicas": [{"count": count}], **more})


@pytest.mark.parametrize("slo", ["ttft p90 100ms", "tpot p95 18ms", "e2e p50 400ms", "ttft p99 1s, tpot p80 17ms"])
def test_a_miss_is_certain_and_all_else_is_as_it_was(slo: str) -> None:
    level, seen = Slo.parse(slo), set()
    for rate in (4.0, 12.0, 18.0, 24.0, 60.0):
        for replicas, failures in ((1, None), (2, None), (2, FailureSettings(every_s=2.0, repair_s=0.5))):
            spec = WorkloadSpec(requests=120, rate=rate, prompt_length="24", output_length="uniform:1,40", seed=3)
            workload, settings = synthesise(spec), fleet(replicas, failures=failures)
            whole = simulate_fleet(settings, build, workload)
            watch = Watch(level, len(workload))
            watched = simulate_fleet(settings, build, workload, watch=watch)
            met = level.met(whole.requests)
            seen.add((met, watch.missed))
            if watch.missed:
                assert not met and watched.duration_s <= whole.duration_s
            else:
                assert watched.requests.end.tobytes() == whole.requests.end.tobytes()
    assert (True, False) in seen and (False, True) in seen


def test_what_does_not_count_is_not_counted() -> None:
    watch = Watch(Slo.parse("ttft p90 100ms"), 10, first=5)
    for row in range(5):
        watch.began(row, 9.0)
    watch.began(5, 9.0)
    assert not watch.missed  # one of ten may be late
    watch.began(5, 9.0)
    assert not watch.missed  # the same again
    watch.began(6, 9.0)
    assert watch.missed


def test_a_fleet_of_one_leaps_whatever_its_requests_depend_on() -> None:
    for changes in ({"turns": "geometric:4", "think": 0.3, "rate": 9.0}, {"users": 6, "think": 0.2}):
        spec = WorkloadSpec(requests=150, prompt_length="24", output_length="uniform:1,40", seed=5, **changes)
        workload = synthesise(spec)
        found = simulate_fleet(fleet(1), build, workload)
        stepwise = simulate(CONFIG, workload, COST, leap=False)
        for name in ("due", "first", "end", "cached_tokens"):
            assert getattr(found.requests, name).tobytes() == getattr(stepwise.requests, name).tobytes()
        assert found.replicas[0].steps == stepwise.steps
