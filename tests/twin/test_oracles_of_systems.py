"""What refuses, pauses, divides itself or sends on, made ideal, against queueing theory; see `test_oracles`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from armillary.deployment import FleetSettings, LinkSettings, ReplicaSettings
from armillary.measure.workload import WorkItem, Workload
from armillary.plan.batch_server import BatchServer, service_rates
from armillary.plan.networks import JacksonNetwork, mva
from armillary.plan.queueing import MG1, ProcessorSharing, erlang_b
from armillary.plan.service import Gamma
from armillary.twin.cost import IdealCost
from armillary.twin.fleet import simulate_fleet
from armillary.twin.member import ReplicaPlan
from armillary.twin.simulate import simulate
from ideal_engine import ONE_BY_ONE, WARM, arrivals, holds, responses


@pytest.mark.parametrize("room", [1, 3])
def test_a_queue_that_refuses_is_m_m_1_k(room):
    rate = 0.9
    theory = BatchServer(rate, np.array([1.0]), capacity=1 + room)
    result = simulate(
        replace(ONE_BY_ONE, max_waiting=room), arrivals(rate, 6_000, 11), IdealCost(1.0, exponential=True, seed=12)
    )
    run = result.requests
    assert holds(~run.ok[WARM:], theory.lost)
    assert holds(run.e2e[WARM:][run.ok[WARM:]], theory.response_s)


def test_servers_with_one_place_to_wait_lose_what_erlang_says():
    servers, tokens, load = 3, 200.0, 2.0
    rates = service_rates(lambda n: 1.0 / tokens, tokens, servers)
    result = simulate(
        replace(ONE_BY_ONE, max_context=8_192, num_blocks=65_536, max_running=servers, max_waiting=1),
        arrivals(load, 8_000, 13, mean_tokens=tokens),
        IdealCost(1.0 / tokens),
    )
    # The formula B, of servers without such a place, and what the place changes: one state more.
    without, busy = erlang_b(servers, load), load / servers
    lost = without * busy / (1 + without * busy)
    assert lost == pytest.approx(BatchServer(load, rates, capacity=servers + 1).lost)
    assert holds(~result.requests.ok[WARM:], lost)


def test_arrivals_that_wait_for_a_step_of_others_are_vacations():
    # One request runs for ever; who comes is looked at when its step ends. With nobody there the engine is away for a
    # step at a time.
    rate, tokens, step = 0.15, 3.0, 1.0
    workload = arrivals(rate, 6_000, 14, mean_tokens=tokens)
    for_ever = int(1.2 * workload.items[-1].arrival)
    first = WorkItem(id="for ever", arrival=0.0, prompt_tokens=1, output_tokens=for_ever)
    config = replace(ONE_BY_ONE, max_running=2, max_context=for_ever + 16, num_blocks=for_ever // 16 + 1_000)
    result = simulate(config, Workload((first, *workload.items)), IdealCost(step))
    found = responses(result)[1:]
    assert result.requests.end[0] > result.requests.end[1:].max()
    theory = MG1(rate, Gamma(tokens * step, 1 - 1 / tokens), vacation=Gamma(step, 0.0))
    assert holds(found, theory.response_s)
    waits = found - step * result.requests.output_tokens[1 + WARM :]
    assert holds(waits, theory.wait_s)
    for level in (0.5, 0.9):
        assert holds(waits <= theory.wait_quantile(level), level)


@pytest.mark.parametrize("lengths", [(120,), (20, 20, 20, 420)], ids=["equal", "unequal"])
def test_steps_as_long_as_they_are_wide_are_processor_sharing(lengths):
    # Only the mean of the service matters, and a request is slowed down alike whatever its own length.
    rng, step, rate = np.random.default_rng(15), 1 / 120, 0.6
    times = np.cumsum(rng.exponential(1 / rate, 6_000)).tolist()
    items = (
        WorkItem(id=str(i), arrival=time, prompt_tokens=1, output_tokens=int(rng.choice(lengths)))
        for i, time in enumerate(times)
    )
    config = replace(ONE_BY_ONE, max_context=8_192, num_blocks=65_536, max_step_tokens=1024, max_running=1024)
    result = simulate(config, Workload(tuple(items)), IdealCost(0.0, step))
    found, theory = responses(result), ProcessorSharing(rate, 1.0)
    assert holds(found, theory.response_s)
    tokens = result.requests.output_tokens[WARM:]
    for length in lengths:
        assert holds(found[tokens == length], theory.response_of_s(length * step))


def test_prompts_here_and_answers_there_are_an_open_network():
    # A token of the prompt's engine, then one of the other's: stations in a row.
    service, rate = (0.5, 0.8), 0.8
    workload = arrivals(rate, 8_000, 16)
    items = tuple(item.model_copy(update={"output_tokens": 2}) for item in workload.items)
    roles = (ReplicaSettings(role="prefill"), ReplicaSettings(role="decode"))
    costs = {
        role: IdealCost(mean, exponential=True, seed=seed)
        for role, mean, seed in zip(("prefill", "decode"), service, (17, 18), strict=True)
    }
    result = simulate_fleet(
        FleetSettings(replicas=roles, link=LinkSettings(latency_s=0.0)),
        lambda group: ReplicaPlan(replace(ONE_BY_ONE, num_blocks=65_536), costs[group.role]),
        Workload(items),
    )
    theory = JacksonNetwork((rate, 0.0), service, ((0.0, 1.0), (0.0, 0.0)))
    first, second = theory.stations
    found = responses(result)
    assert holds(found, theory.response_s)
    assert holds(result.requests.ttft[WARM:], first.response_s)
    assert holds(found - result.requests.ttft[WARM:], second.response_s)
    assert holds(found - result.requests.ttft[WARM:] <= second.response_quantile(0.9), 0.9)


def test_customers_of_two_kinds_are_mean_value_analysis():
    # A conversation that goes on for ever is a customer, and what it thinks between its turns is its kind's.
    customers, thinking, each = (6, 4), (4.0, 20.0), (1_000, 350)
    rng = np.random.default_rng(19)
    items = [
        WorkItem(
            id=f"{kind}-{who}-{turn}", arrival=0.0, prompt_tokens=1, output_tokens=1, session=f"{kind}-{who}",
            think=float(rng.exponential(thinking[kind])) if turn else 0.0,
        )
        for kind in (0, 1) for who in range(customers[kind]) for turn in range(each[kind])
    ]  # fmt: skip
    kinds = np.array([int(item.id[0]) for item in items])
    result = simulate(ONE_BY_ONE, Workload(tuple(items)), IdealCost(1.0, exponential=True, seed=20))
    run = result.requests
    assert run.ok.all()
    last = min(run.end[[item.session == name for item in items]].max() for name in {item.session for item in items})
    theory = mva([[1.0], [1.0]], customers, thinking)
    for kind in (0, 1):
        here = (kinds == kind) & (run.due > 200) & (run.end < last)
        order = np.argsort(run.due[here])
        assert holds(run.e2e[here][order], float(theory.response_s[kind]))
        assert holds(np.diff(np.sort(run.end[here])), 1 / float(theory.throughput[kind]))
