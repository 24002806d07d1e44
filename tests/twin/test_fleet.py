"""Many replicas: routes, failures, scaling."""

from __future__ import annotations

import gc
from collections import Counter
from math import inf

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from armillary.core.config import SchedulerConfig
from armillary.core.routing import ROUTES
from armillary.deployment import FailureSettings, FleetSettings, LinkSettings, ReplicaSettings, ScalingSettings
from armillary.errors import ArmillaryError
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.measure.workload import WorkItem, Workload
from armillary.twin.cost import IdealCost
from armillary.twin.fleet import simulate_fleet
from armillary.twin.fleet_result import FleetResult
from armillary.twin.member import ReplicaPlan
from armillary.twin.outcome import FINISHES
from armillary.twin.replica import Replica
from armillary.twin.simulate import simulate
from armillary.twin.spread import Spread
from armillary.twin.work import StepWork

CONFIG = SchedulerConfig(num_blocks=200, max_context=400, max_step_tokens=64, max_running=8)


def build(group: ReplicaSettings) -> ReplicaPlan:
    """Replicas named `fast` are twice as fast."""
    speed = 2.0 if group.hardware == "fast" else 1.0
    return ReplicaPlan(CONFIG, IdealCost(0.01 / speed, 0.002 / speed, between=0.001), speed, kv_bytes=1000)


def workload(requests: int = 300, rate: float = 20.0, **more: object) -> Workload:
    spec = WorkloadSpec(requests=requests, rate=rate, prompt_length="uniform:10,60", output_length="uniform:1,30",
                        seed=3, **more)  # type: ignore[arg-type]  # fmt: skip
    return synthesise(spec)


def fleet(count: int = 1, **more: object) -> FleetSettings:
    return FleetSettings(replicas=(ReplicaSettings(count=count),), **more)  # type: ignore[arg-type]


def check(result: FleetResult, requests: int) -> None:
    """Nothing is lost, and what was served was served by somebody."""
    assert len(result.requests) == requests
    assert result.requests.ok.all()
    assert (result.requests.replica >= 0).all()
    assert (result.requests.first >= result.requests.due).all() and (result.requests.end >= result.requests.first).all()
    made = sum(use.steps.rows for use in result.replicas)
    assert made >= result.requests.output_tokens.sum()


def test_a_fleet_of_one_is_one_engine() -> None:
    load = workload()
    alone = simulate(CONFIG, load, build(ReplicaSettings()).cost)
    result = simulate_fleet(fleet(), build, load)
    for name in ("due", "first", "end", "cached_tokens", "finish"):
        assert getattr(result.requests, name).tobytes() == getattr(alone.requests, name).tobytes(), name
    assert result.duration_s == alone.duration_s and result.replicas[0].steps == alone.steps
    assert result.sizes == ((0.0, 1),)


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_serves_all_and_equal_seeds_give_equal_bytes(route: str) -> None:
    load = workload(requests=400, rate=60.0, prefixes=5, prefix_length=32, prefix_share=0.8)
    results = [simulate_fleet(fleet(4, route=route), build, load, seed=seed) for seed in (1, 1)]
    check(results[0], 400)
    assert results[0].requests.end.tobytes() == results[1].requests.end.tobytes()
    assert set(results[0].requests.replica.tolist()) == {0, 1, 2, 3}


def test_more_replicas_are_never_slower_by_much_and_a_good_route_beats_a_blind_one() -> None:
    load = workload(requests=600, rate=60.0)
    means = [simulate_fleet(fleet(count), build, load).requests.e2e.mean() for count in (2, 3, 4)]
    assert means[0] > means[1] > means[2]
    mixed = FleetSettings(replicas=(ReplicaSettings(count=2), ReplicaSettings(hardware="fast", count=1)))
    by_load = simulate_fleet(mixed, build, load)
    blind = simulate_fleet(mixed.model_copy(update={"route": "round_robin"}), build, load)
    assert by_load.requests.ttft.mean() < blind.requests.ttft.mean()
    served = Counter(by_load.requests.replica.tolist())
    assert served[2] > 1.3 * served[0]


def test_prefixes_are_found_more_often_where_the_route_looks_for_them() -> None:
    load = workload(requests=500, rate=40.0, prefixes=96, prefix_length=48, prefix_share=1.0)
    cached = {
        route: simulate_fleet(fleet(4, route=route), build, load).requests.cached_tokens.mean()
        for route in ("round_robin", "prefix_aware")
    }
    assert cached["prefix_aware"] > 1.2 * cached["round_robin"]


def test_a_session_finds_its_turns_where_it_was() -> None:
    items = [
        WorkItem(id=f"{turn}/{name}", arrival=0.01 * turn, prompt_tokens=16 * (turn + 1), output_tokens=8,
                 session=name, think=0.2)
        for turn in range(5) for name in "abcdef"
    ]  # fmt: skip
    result = simulate_fleet(fleet(3, route="session_sticky"), build, Workload(tuple(items)))
    check(result, 30)
    homes = {name: {int(result.requests.replica[i]) for i, item in enumerate(items) if item.session == name}
             for name in "abcdef"}  # fmt: skip
    assert all(len(where) == 1 for where in homes.values())


def test_failures_lose_nothing_and_cost_time() -> None:
    load = workload(requests=500, rate=30.0)
    calm = simulate_fleet(fleet(3), build, load, seed=4)
    rough = fleet(3, failures=FailureSettings(every_s=5.0, repair_s=2.0), ready_s=1.0)
    result = simulate_fleet(rough, build, load, seed=4)
    check(result, 500)
    assert sum(use.failures for use in result.replicas) >= 3 and result.restarted > 0
    assert result.requests.e2e.mean() > calm.requests.e2e.mean()
    again = simulate_fleet(rough, build, load, seed=4)
    assert again.requests.end.tobytes() == result.requests.end.tobytes()
    assert simulate_fleet(rough, build, load, seed=5).requests.end.tobytes() != result.requests.end.tobytes()


def test_replicas_that_fail_before_anything_ends_are_refused() -> None:
    long = Workload((WorkItem(id="long", arrival=0.0, prompt_tokens=20, output_tokens=300),))  # over three seconds
    with pytest.raises(ArmillaryError, match=r"given one that began 1000 times; raise fleet.failures.every_s"):
        simulate_fleet(fleet(1, failures=FailureSettings(every_s=0.1, repair_s=0.0)), build, long)
    for group in ({"failures": {"every_s": 1e-9}}, {"scaling": {"period_s": 1e-9}}):  # ever so many events
        with pytest.raises(ValidationError):
            FleetSettings.model_validate(group)


def test_while_all_are_down_requests_wait_at_the_door() -> None:
    load = workload(requests=50, rate=50.0)
    result = simulate_fleet(fleet(1, failures=FailureSettings(every_s=0.4, repair_s=3.0)), build, load, seed=2)
    check(result, 50)
    assert result.replicas[0].failures > 0 and result.requests.ttft.max() > 2.0


@pytest.mark.parametrize("by", ["queue", "slo", "forecast"])
def test_a_fleet_grows_with_the_load_and_shrinks_after_it(by: str) -> None:
    """A burst of ten times the load, with quiet before and after."""
    arrivals = np.concatenate([np.arange(0, 60, 1.0), np.arange(60, 120, 0.05), np.arange(120, 400, 1.0)])
    items = (
        WorkItem(id=str(i), arrival=float(at), prompt_tokens=32, output_tokens=40) for i, at in enumerate(arrivals)
    )
    load = Workload(tuple(items))
    scaling = ScalingSettings(by=by, least=1, most=6, period_s=5.0, calm_s=30.0, per_replica=6.0, rate_per_replica=6.0)  # type: ignore[arg-type]
    settings = fleet(1, scaling=scaling, ready_s=4.0)
    result = simulate_fleet(settings, build, load, late=lambda ttft, tpot: ttft > 0.5)
    check(result, len(arrivals))
    sizes = [size for _, size in result.sizes]
    assert sizes[0] == 1 and max(sizes) >= 3 and sizes[-1] < max(sizes), result.sizes
    assert max(sizes) <= 6
    fixed = simulate_fleet(fleet(1), build, load)
    assert result.requests.ttft.mean() < fixed.requests.ttft.mean()
    held = sum(use.held_s for use in result.replicas)
    assert held < 6 * result.duration_s


def test_a_full_queue_refuses_and_the_books_stay_even() -> None:
    tiny = SchedulerConfig(num_blocks=20, max_context=200, max_running=2, max_waiting=2)

    def small(group: ReplicaSettings) -> ReplicaPlan:
        return ReplicaPlan(tiny, IdealCost(0.05))

    result = simulate_fleet(fleet(2), small, workload(requests=100, rate=200.0))
    refused = result.requests.finish == FINISHES.index("refused")
    assert 0 < refused.sum() < 100 and (result.requests.ok | refused).all()
    assert (result.requests.replica[refused] == -1).all()


def split(prefill: int = 1, decode: int = 2, **more: object) -> FleetSettings:
    groups = (ReplicaSettings(role="prefill", count=prefill), ReplicaSettings(role="decode", count=decode))
    return FleetSettings(replicas=groups, **more)  # type: ignore[arg-type]


def test_prompts_and_answers_in_different_replicas() -> None:
    load = workload(requests=300, rate=20.0)
    result = simulate_fleet(split(), build, load)
    check(result, 300)
    front, *back = result.replicas
    assert front.steps.rows == 300  # one token of each
    assert sum(use.steps.rows for use in back) == result.requests.output_tokens.sum() - 300
    whole = simulate_fleet(fleet(3), build, load)
    assert whole.requests.output_tokens.tolist() == result.requests.output_tokens.tolist()


def test_the_link_takes_its_time() -> None:
    load = Workload((WorkItem(id="0", arrival=0.0, prompt_tokens=50, output_tokens=3),))
    slow = LinkSettings(bandwidth=100_000, latency_s=0.25)
    result = simulate_fleet(split(link=slow), build, load)
    first = 0.01 + 0.002  # one step for the prompt; then 50,000 bytes; then two steps, and the pause between them
    arrived = first + 0.5 + 0.25
    assert result.requests.first[0] == pytest.approx(first)
    assert result.requests.end[0] == pytest.approx(arrived + 2 * (0.01 + 0.002) + 0.001)


def test_blocks_wait_for_the_link_and_prompts_for_the_blocks() -> None:
    """The pool of the first replica is small and the link slow: nothing is lost, and prompts wait."""
    tight = SchedulerConfig(num_blocks=12, max_context=160, max_step_tokens=64, max_running=8)

    def narrow(group: ReplicaSettings) -> ReplicaPlan:
        return ReplicaPlan(tight if group.role == "prefill" else CONFIG, IdealCost(0.01), kv_bytes=1000)

    load = workload(requests=60, rate=40.0)
    slow = simulate_fleet(split(link=LinkSettings(bandwidth=200_000)), narrow, load)
    fast = simulate_fleet(split(), narrow, load)
    check(slow, 60)
    check(fast, 60)
    assert slow.requests.ttft.mean() > 3 * fast.requests.ttft.mean()


def test_failures_on_either_side_lose_nothing() -> None:
    load = workload(requests=300, rate=20.0)
    settings = split(2, 2, failures=FailureSettings(every_s=3.0, repair_s=1.0), link=LinkSettings(bandwidth=10**6))
    result = simulate_fleet(settings, build, load, seed=1)
    check(result, 300)
    failed = [use.failures for use in result.replicas]
    assert min(sum(failed[:2]), sum(failed[2:])) > 0 and result.restarted > 0


@settings(max_examples=40, deadline=None)
@example("sessions", 3, "prefix_aware", 60.0, False, True, 60, True, False, 2.5, 57)  # an answer of one token
@given(
    kind=st.sampled_from(["open", "sessions", "users", "split"]),
    replicas=st.sampled_from([1, 3]),
    route=st.sampled_from(ROUTES),
    rate=st.sampled_from([2.0, 15.0, 60.0]),
    failures=st.booleans(),
    scaling=st.booleans(),
    blocks=st.sampled_from([26, 60, 200]),
    exponential=st.booleans(),
    varying=st.booleans(),
    until=st.sampled_from([inf, 2.5]),
    seed=st.integers(0, 99),
)
def test_leaping_changes_nothing(
    kind: str, replicas: int, route: str, rate: float, failures: bool, scaling: bool, blocks: int, exponential: bool,
    varying: bool, until: float, seed: int,
) -> None:  # fmt: skip
    """Neither do leaps, nor that a replica is looked at only when something may end there, nor how it is routed."""
    given: dict[str, object] = {"users": 9, "think": 0.3} if kind == "users" else {"rate": rate}
    if kind in ("sessions", "users"):
        given |= {"turns": "uniform:1,3", "context_limit": 390}
    spec = WorkloadSpec(
        requests=80, prompt_length="uniform:10,60", output_length="uniform:1,60", prefixes=4, prefix_length=32,
        seed=seed, **given,
    )  # type: ignore[arg-type]  # fmt: skip
    load = synthesise(spec)
    more: dict[str, object] = {"route": route}
    if failures:
        more["failures"] = FailureSettings(every_s=4.0, repair_s=1.0)
    if scaling and kind != "split":
        more["scaling"] = ScalingSettings(by="queue", least=1, most=4, period_s=1.0, calm_s=2.0, per_replica=2.0)
    deployment = split(1, 2, link=LinkSettings(bandwidth=10**6), **more) if kind == "split" else fleet(replicas, **more)

    def narrow(group: ReplicaSettings) -> ReplicaPlan:
        config = SchedulerConfig(num_blocks=blocks, max_context=400, max_step_tokens=64, max_running=8)
        cost = IdealCost(0.01, 0.002, between=0.001, exponential=exponential, seed=seed)
        spread = Spread(limits_s=[], factors=[[0.5, 1.0, 1.5]], own=[0.7, 0, 0, 0, 0, 0]) if varying else None
        return ReplicaPlan(config, cost, kv_bytes=1000, spread=spread)

    leaping, stepping = (
        simulate_fleet(deployment, narrow, load, seed=seed, until=until, leap=leap) for leap in (True, False)
    )
    for name in ("due", "first", "end", "output_tokens", "cached_tokens", "finish", "replica"):
        assert getattr(leaping.requests, name).tobytes() == getattr(stepping.requests, name).tobytes(), name
    for name in ("duration_s", "sizes", "restarted", "replicas"):
        assert getattr(leaping, name) == getattr(stepping, name), name


def test_what_was_simulated_is_freed_without_a_search_for_circles() -> None:
    load = workload(requests=60, rate=30.0, turns="3")
    failing = fleet(2, failures=FailureSettings(every_s=1.0, repair_s=0.1))
    gc.collect()
    gc.disable()
    try:
        found = [simulate_fleet(fleet(2), build, load), simulate_fleet(failing, build, load)]
        alone = simulate(CONFIG, load, build(ReplicaSettings()).cost)
        assert gc.collect() < 20
    finally:
        gc.enable()
    assert found[1].replicas[0].failures and len(alone.requests) == 60


def test_a_replica_is_left_alone_while_nothing_can_end_there(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    step = Replica.step

    def counted(self: Replica, until: float) -> bool:
        looks.append(until)
        return step(self, until)

    monkeypatch.setattr(Replica, "step", counted)
    arrivals = [WorkItem(id=str(i), arrival=0.02 * i, prompt_tokens=8, output_tokens=100) for i in range(100)]
    load = Workload(tuple(arrivals))
    result = simulate_fleet(fleet(20, route="round_robin"), build, load)
    check(result, 100)
    assert len(looks) < 15 * 100 < sum(use.steps.steps for use in result.replicas)


def test_a_cost_model_that_calls_itself_steady_and_is_not_is_found_out() -> None:
    class Shrinking(IdealCost):
        def step_s(self, work: StepWork) -> float:
            return 1.0 / work.context

    def wrong(group: ReplicaSettings) -> ReplicaPlan:
        return ReplicaPlan(CONFIG, Shrinking(1.0))

    load = Workload(tuple(WorkItem(id=str(i), arrival=float(i), prompt_tokens=8, output_tokens=300) for i in range(20)))
    with pytest.raises(RuntimeError, match="not steady"):
        simulate_fleet(fleet(3, route="round_robin"), wrong, load)
