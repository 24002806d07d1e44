"""The unchanged engine, made ideal, against queueing theory: textbooks know what must come out.

Each simulated mean must hold the theory's value in its own 99.9 % interval of batch means; seeds are fixed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from armillary.deployment import FleetSettings, ReplicaSettings
from armillary.measure.workload import WorkItem, Workload
from armillary.plan.batch_server import BatchServer, service_rates
from armillary.plan.markov import stationary
from armillary.plan.networks import mva, normalising_constants
from armillary.plan.queueing import MG1, MGc, MMc
from armillary.plan.service import Gamma
from armillary.twin.cost import IdealCost
from armillary.twin.fleet import simulate_fleet
from armillary.twin.member import ReplicaPlan
from armillary.twin.simulate import simulate
from ideal_engine import COUNT, ONE_BY_ONE, WARM, arrivals, gaps, holds, responses


def test_exponential_steps_are_m_m_1():
    theory = MMc(0.7, 1.0)
    result = simulate(ONE_BY_ONE, arrivals(0.7), IdealCost(1.0, exponential=True, seed=1))
    found = responses(result)
    assert holds(found, theory.response_s)
    for level in (0.5, 0.9, 0.95):
        assert holds(found <= theory.response_quantile(level), level)
    assert result.steps.busy_s / result.duration_s == pytest.approx(theory.utilisation, rel=0.03)


@pytest.mark.parametrize("rate", [0.3, 0.8])
def test_equal_steps_are_m_d_1(rate):
    theory = MG1(rate, Gamma(1.0, 0.0))
    found = responses(simulate(ONE_BY_ONE, arrivals(rate), IdealCost(1.0)))
    assert holds(found, theory.response_s)
    assert holds(found <= theory.response_quantile(0.95), 0.95)
    # Who arrives while nothing runs begins at once: no step boundary to wait for.
    assert holds(found <= 1.0 + 1e-6, 1 - rate)


def test_time_between_steps_occupies_the_server():
    # The answer is known before the pause, but the next request waits for its end: service 1.0, a wait as if 1.2. A
    # pause that lengthened answers without occupying the engine would give waits that are far too short.
    theory, workload = MG1(0.5, Gamma(1.2, 0.0)), arrivals(0.5)
    found = responses(simulate(ONE_BY_ONE, workload, IdealCost(1.0, between=0.2)))
    assert holds(found - 1.0, theory.wait_s)
    assert found.mean() - 1.0 > 1.5 * MG1(0.5, Gamma(1.0, 0.0)).wait_s
    # And request by request: Lindley's recursion for the wait.
    gaps = np.diff([item.arrival or 0.0 for item in workload.items])
    walk = np.concatenate([[0.0], np.cumsum(1.2 - gaps)])
    np.testing.assert_allclose(found, 1.0 + (walk - np.minimum.accumulate(walk))[WARM:], atol=1e-6)


def test_answers_of_several_steps_are_m_g_1():
    # A geometric number of equal steps: scv of the service 1 - 1/mean.
    theory = MG1(0.2, Gamma(3.0, 1 - 1 / 3))
    found = responses(simulate(ONE_BY_ONE, arrivals(0.2, 5_000, 2, mean_tokens=3.0), IdealCost(1.0)))
    assert holds(found, theory.response_s)


def test_thinking_users_are_mean_value_analysis():
    users, think = 8, 5.0
    rng = np.random.default_rng(3)
    items = (
        WorkItem(id=str(i), prompt_tokens=1, output_tokens=1, think=time)
        for i, time in enumerate(rng.exponential(think, COUNT).tolist())
    )
    result = simulate(ONE_BY_ONE, Workload(tuple(items), users=users), IdealCost(1.0, exponential=True, seed=4))
    theory = mva([1.0], users, think)
    assert holds(responses(result), float(theory.response_s[0]))
    assert holds(gaps(result), 1 / float(theory.throughput[0]))


LONG = replace(ONE_BY_ONE, max_context=8_192, num_blocks=65_536)
"""For answers of thousands of tokens."""


def present(rate: float, slots: int, tokens: float, step_s: Callable[[int], float], states: int = 160) -> float:
    """The mean number present, exactly.

    The chain of an engine looked at when steps end: each of those in the batch ends with probability 1/tokens, a
    Poisson number has come meanwhile, and an engine with nobody waits for the next arrival and begins at once.
    """
    durations = np.array([step_s(min(max(n, 1), slots)) for n in range(states)])
    chain = np.zeros((states, states))
    for n in range(states):
        running = min(max(n, 1), slots)
        stay = stats.binom(running, 1 / tokens).pmf(np.arange(running + 1))
        come = stats.poisson(rate * durations[n]).pmf(np.arange(states))
        for ended, likely in enumerate(stay):
            left = max(n, 1) - ended
            chain[n, left:] += likely * come[: states - left]
        chain[n, -1] += max(0.0, 1 - chain[n].sum())
    seen = stationary(chain)
    idle = np.zeros(states)
    idle[0] = 1 / rate
    area = np.maximum(np.arange(states), 1) * durations + rate * durations**2 / 2
    return float(seen @ area / (seen @ (durations + idle)))


@pytest.mark.parametrize(("slots", "per_sequence"), [(4, 0.0), (6, 0.1)])
def test_a_batch_is_its_chain(slots, per_sequence):
    tokens = 12.0

    def step_s(n: int) -> float:
        return 0.5 + per_sequence * n

    rates = service_rates(step_s, tokens, slots)
    rate = 0.65 * rates[-1]
    config, cost = replace(ONE_BY_ONE, max_running=slots), IdealCost(0.5, per_sequence)
    found = responses(simulate(config, arrivals(rate, 4_000, 5, mean_tokens=tokens), cost))
    assert holds(found, present(rate, slots, tokens, step_s) / rate)


@pytest.mark.parametrize(("slots", "per_sequence"), [(4, 0.0), (6, 0.1)])
def test_a_batch_of_fine_steps_is_a_batch_server(slots, per_sequence):
    # In continuous time, where nobody waits for the end of a step: steps of a two-hundredth of an answer come near.
    tokens = 200.0
    rates = service_rates(lambda n: (0.5 + per_sequence * n) / tokens, tokens, slots)
    rate = 0.65 * rates[-1]
    cost = IdealCost(0.5 / tokens, per_sequence / tokens)
    workload = arrivals(rate, 4_000, 5, mean_tokens=tokens)
    found = responses(simulate(replace(LONG, max_running=slots), workload, cost))
    assert holds(found, BatchServer(rate, rates).response_s)


def test_slots_that_do_not_slow_each_other_down_are_servers_beside_each_other():
    # M/M/c: Erlang's C says how many wait. Steps of a hundredth of an answer, so that nobody else waits for long.
    servers, tokens, rate = 2, 100.0, 1.3
    workload = arrivals(rate, 12_000, 8, mean_tokens=tokens)
    result = simulate(replace(LONG, max_running=servers), workload, IdealCost(1 / tokens))
    theory = MMc(rate, 1.0, servers)
    found = responses(result)
    waits = found - result.requests.output_tokens[WARM:] / tokens
    assert holds(found, theory.response_s)
    assert holds(waits > 1 / tokens, theory.wait_probability)
    assert holds(waits, theory.wait_s)
    assert holds(waits <= theory.wait_quantile(0.9), 0.9)


def test_a_batch_of_thinking_users_is_its_chain():
    users, think, slots, tokens = 10, 30.0, 4, 200.0
    rng = np.random.default_rng(6)
    count = 4_000
    items = (
        WorkItem(id=str(i), prompt_tokens=1, output_tokens=length, think=time)
        for i, (time, length) in enumerate(
            zip(rng.exponential(think, count).tolist(), rng.geometric(1 / tokens, count).tolist(), strict=True)
        )
    )
    result = simulate(replace(LONG, max_running=slots), Workload(tuple(items), users=users), IdealCost(0.05, 0.01))
    rates = service_rates(lambda n: 0.05 + 0.01 * n, tokens, slots)
    throughput, (present,) = normalising_constants([1 / rates[0]], users, think, [list(rates / rates[0])])
    assert holds(gaps(result), 1 / throughput)
    assert holds(responses(result), present / throughput)


def test_equal_steps_in_turn_are_one_queue_before_all_replicas():
    # With equal service, taking turns is what one queue before all servers does: M/D/k, request by request.
    replicas, workload = 3, arrivals(2.4, 3_000, 7)
    fleet = FleetSettings(replicas=(ReplicaSettings(count=replicas),), route="round_robin")
    result = simulate_fleet(fleet, lambda group: ReplicaPlan(ONE_BY_ONE, IdealCost(1.0)), workload)
    free, expected = [0.0] * replicas, []
    for item in workload.items:
        start = max(item.arrival or 0.0, free[0])
        heapq.heapreplace(free, start + 1.0)
        expected.append(start + 1.0 - (item.arrival or 0.0))
    np.testing.assert_allclose(result.requests.e2e, expected, atol=1e-6)
    # And so the approximation for constant service.
    assert holds(responses(result), MGc(2.4, Gamma(1.0, 0.0), replicas).response_s)
