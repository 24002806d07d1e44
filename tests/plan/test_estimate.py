"""The estimate beside a simulation is near it where its assumptions hold, and says when more comes than can be done."""

from __future__ import annotations

import numpy as np
import pytest

from armillary.core.config import SchedulerConfig
from armillary.deployment import Deployment, FleetSettings, ReplicaSettings
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.plan.estimate import beside, estimate
from armillary.twin.cost import IdealCost
from armillary.twin.deployed import Deployed
from armillary.twin.fleet import simulate_fleet
from armillary.twin.member import ReplicaPlan
from armillary.twin.simulate import simulate

CONFIG = SchedulerConfig(
    num_blocks=4096, max_context=4096, max_step_tokens=512, max_running=16, max_waiting=100_000, prefix_cache=False
)
COST = IdealCost(0.02, 0.002, between=0.001)


@pytest.mark.parametrize(
    "changes",
    [{"rate": 5.0}, {"rate": 9.0}, {"users": 12, "think": 2.0}, {"users": 40}],
    ids=["light", "heavy", "thinking", "full"],
)
def test_means_are_near_the_twin(changes):
    workload = synthesise(
        WorkloadSpec(requests=500, prompt_length="32", output_length="lognormal:24,1", seed=1, **changes)
    )
    found = estimate(CONFIG, COST, workload)
    result = simulate(CONFIG, workload, COST)
    run = result.requests
    assert found.e2e_s == pytest.approx(float(np.nanmean(run.e2e)), rel=0.2)
    assert found.throughput == pytest.approx(len(run) / result.duration_s, rel=0.15)
    in_slots = float(np.nanmean((run.end - run.first) / np.maximum(1, run.output_tokens - 1)))
    assert found.tpot_s == pytest.approx(in_slots, rel=0.25)


def test_replicas_share_the_work():
    workload = synthesise(WorkloadSpec(requests=500, rate=24.0, prompt_length="32", output_length="24", seed=2))
    found = estimate(CONFIG, COST, workload, replicas=3)
    fleet = FleetSettings(replicas=(ReplicaSettings(count=3),))
    result = simulate_fleet(fleet, lambda group: ReplicaPlan(CONFIG, COST), workload)
    assert found.e2e_s == pytest.approx(float(np.nanmean(result.requests.e2e)), rel=0.2)
    assert found.capacity == pytest.approx(3 * estimate(CONFIG, COST, workload).capacity, rel=1e-6)


def test_capacity_is_where_the_twin_stops_keeping_up():
    spec = WorkloadSpec(requests=400, prompt_length="32", output_length="24", seed=3)
    everything = synthesise(spec)  # all at once
    found = estimate(CONFIG, COST, everything)
    assert not found.stable
    assert found.capacity == pytest.approx(400 / simulate(CONFIG, everything, COST).duration_s, rel=0.1)


def test_sentences():
    fleet = {"replicas": [{"hardware": "l4"}]}
    deployed = Deployed(Deployment.model_validate({"engine": {"kv_blocks": 512}, "fleet": fleet}))
    (line,) = beside(deployed, synthesise(WorkloadSpec(requests=20, rate=5.0)))
    assert "capacity" in line and "TTFT" in line
    (line,) = beside(deployed, synthesise(WorkloadSpec(requests=20)))
    assert "more comes" in line
    two = {"replicas": [{"hardware": "l4", "role": "prefill"}, {"hardware": "l4", "role": "decode"}]}
    deployed = Deployed(Deployment.model_validate({"engine": {"kv_blocks": 512}, "fleet": two}))
    (line,) = beside(deployed, synthesise(WorkloadSpec(requests=20, rate=5.0)))
    assert "one kind" in line
