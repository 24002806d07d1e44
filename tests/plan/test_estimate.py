"""The estimate beside a simulation is near it where its assumptions hold, and says when more comes than can be done."""

from __future__ import annotations

import numpy as np
import pytest

from armillary.core.config import SchedulerConfig
from armillary.deployment import FleetSettings, ReplicaSettings
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.plan.estimate import estimate
from armillary.twin.cost import IdealCost
from armillary.twin.fleet import simulate_fleet
from armillary.twin.member import ReplicaPlan
from armillary.twin.simulate import simulate
from armillary.twin.work import StepWork

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


class Read(IdealCost):
    """With a desk at which requests are read one after another, or side by side."""

    def __init__(self, turns: bool) -> None:
        super().__init__(0.02, 0.002, between=0.001)
        self.turns = turns

    def request_s(self, prompt_tokens: int) -> float:
        return 0.01 + 0.002 * prompt_tokens


@pytest.mark.parametrize("changes", [{"rate": 9.0}, {"users": 12, "think": 0.5}], ids=["open", "closed"])
@pytest.mark.parametrize("turns", [True, False])
def test_reading_is_a_station_of_its_own(changes, turns):
    workload = synthesise(
        WorkloadSpec(requests=800, prompt_length="lognormal:32,1,400", output_length="4", seed=4, **changes)
    )
    cost = Read(turns)
    found, unread = estimate(CONFIG, cost, workload), estimate(CONFIG, COST, workload)
    result = simulate(CONFIG, workload, cost)
    run = result.requests
    assert found.e2e_s == pytest.approx(float(np.nanmean(run.e2e)), rel=0.3)
    assert found.throughput == pytest.approx(len(run) / result.duration_s, rel=0.1)
    assert found.ttft_s > unread.ttft_s + 0.07
    # Where they take turns the desk is what holds everything up; else it is the engine.
    assert (found.capacity == pytest.approx(1 / 0.074, rel=0.1)) if turns else (found.capacity == unread.capacity)


class Beside(IdealCost):
    """A server on the same processors: a step waits while it reads a request, and longer where one begins or ends."""

    near_s = 0.05

    def step_s(self, work: StepWork) -> float:
        return super().step_s(work) + 0.04 * work.read + 0.02 * work.near + 0.01 * work.ended

    def request_s(self, prompt_tokens: int) -> float:
        return 0.05

    def held_s(self, prompt_tokens: int) -> float:
        return 0.04


@pytest.mark.parametrize("changes", [{"rate": 5.0}, {"users": 12, "think": 1.0}], ids=["open", "closed"])
def test_steps_wait_for_a_server_beside_them(changes):
    workload = synthesise(
        WorkloadSpec(requests=800, prompt_length="32", output_length="lognormal:12,1", seed=5, **changes)
    )
    cost = Beside(0.02, 0.002, between=0.001)
    found, alone = estimate(CONFIG, cost, workload), estimate(CONFIG, COST, workload)
    run = (result := simulate(CONFIG, workload, cost)).requests
    assert found.e2e_s == pytest.approx(float(np.nanmean(run.e2e)), rel=0.2)
    assert found.throughput == pytest.approx(len(run) / result.duration_s, rel=0.1)
    assert alone.e2e_s < 0.8 * found.e2e_s and alone.capacity > 1.3 * found.capacity


def test_what_comes_faster_than_it_is_read_is_too_much():
    workload = synthesise(WorkloadSpec(requests=400, rate=18.0, prompt_length="32", output_length="4", seed=4))
    assert not estimate(CONFIG, Read(True), workload).stable
    assert estimate(CONFIG, Read(False), workload).stable
    assert estimate(CONFIG, Read(True), workload, replicas=2).stable, "each engine has a desk"


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
