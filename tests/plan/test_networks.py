"""Networks of queues against chains solved whole, against each other, and against ciw."""

from __future__ import annotations

import itertools

import ciw
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.errors import ArmillaryError
from armillary.plan.batch_server import birth_death
from armillary.plan.markov import stationary
from armillary.plan.networks import JacksonNetwork, mva, normalising_constants, schweitzer


@given(
    demands=st.lists(st.floats(0.01, 2.0), min_size=1, max_size=4),
    population=st.integers(1, 25),
    think=st.one_of(st.just(0.0), st.floats(0.01, 20.0)),
)
def test_mean_values_are_those_of_the_normalising_constants(demands, population, think):
    found = mva(demands, population, think)
    throughput, queue = normalising_constants(demands, population, think)
    assert found.throughput[0] == pytest.approx(throughput, rel=1e-8)
    np.testing.assert_allclose(found.queue[0], queue, rtol=1e-6, atol=1e-9)
    # Little's law over the whole cycle.
    assert throughput * (think + found.response_s[0]) == pytest.approx(population, rel=1e-9)


@given(population=st.integers(1, 60), think=st.floats(0.1, 50), servers=st.integers(1, 8))
def test_one_station_and_thinking_is_a_birth_death_chain(population, think, servers):
    n = np.arange(population)
    chain = birth_death((population - n) / think, np.minimum(n + 1, servers) / 0.3)
    throughput, queue = normalising_constants([0.3], population, think, [list(range(1, servers + 1))])
    assert queue[0] == pytest.approx(float(chain @ np.arange(population + 1)), rel=1e-8)
    assert throughput == pytest.approx(float(chain[:-1] @ (population - n)) / think, rel=1e-8)
    if servers == 1:
        assert mva([0.3], population, think).queue[0, 0] == pytest.approx(queue[0], rel=1e-7)


def test_asymptotes_of_a_thousand_customers():
    found = mva([0.02, 0.01], 1000, 5.0)
    assert found.throughput[0] == pytest.approx(50.0, rel=1e-6)
    throughput, _ = normalising_constants([0.02, 0.01], 1000, 5.0)
    assert found.throughput[0] == pytest.approx(throughput, rel=1e-8)


def test_two_classes_are_the_chain_solved_whole():
    # Processor sharing at one station, exponential thinking: state (n1, n2) at the station.
    demands, think, population = np.array([0.5, 0.2]), np.array([3.0, 1.0]), (3, 2)
    states = list(itertools.product(range(4), range(3)))
    place = {state: i for i, state in enumerate(states)}
    chain = np.zeros((len(states), len(states)))
    for state, i in place.items():
        for c in (0, 1):
            step = tuple(int(k == c) for k in (0, 1))
            if state[c] < population[c]:
                chain[i, place[(state[0] + step[0], state[1] + step[1])]] = (population[c] - state[c]) / think[c]
            if state[c]:
                chain[i, place[(state[0] - step[0], state[1] - step[1])]] = state[c] / sum(state) / demands[c]
    chain -= np.diag(chain.sum(axis=1))
    queue = stationary(chain) @ np.array(states)
    np.testing.assert_allclose(mva(demands[:, None], population, list(think)).queue[:, 0], queue, rtol=1e-9)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    population=st.tuples(st.integers(1, 12), st.integers(0, 12)),
    think=st.floats(0, 10),
)
def test_the_approximation_is_near_the_exact_values(seed, population, think):
    demands = np.random.default_rng(seed).uniform(0.05, 1.0, (2, 3))
    exact, near = mva(demands, population, think), schweitzer(demands, population, think)
    np.testing.assert_allclose(near.throughput, exact.throughput, rtol=0.15)
    np.testing.assert_allclose(near.throughput * (think + near.response_s), population, rtol=1e-6)


def test_one_customer_is_seen_exactly_by_the_approximation():
    np.testing.assert_allclose(schweitzer([0.3, 0.5], 1, 2.0).throughput, 1 / 2.8)


def test_an_open_network_as_ciw_simulates_it():
    ours = JacksonNetwork(
        [3.0, 0.0, 1.0], [0.2, 0.3, 0.1], [[0.0, 0.6, 0.2], [0.1, 0.0, 0.5], [0.0, 0.0, 0.2]], [1, 2, 1]
    )
    network = ciw.create_network(
        arrival_distributions=[ciw.dists.Exponential(rate=3.0), None, ciw.dists.Exponential(rate=1.0)],
        service_distributions=[ciw.dists.Exponential(rate=1 / s) for s in ours.service_s],
        routing=[list(row) for row in ours.routing],
        number_of_servers=list(ours.servers or ()),
    )
    waits: list[list[float]] = [[], [], []]
    for seed in range(4):
        ciw.seed(seed)
        simulation = ciw.Simulation(network)
        simulation.simulate_until_max_time(1200)
        for node in range(3):
            times = [
                r.waiting_time for r in simulation.get_all_records() if r.node == node + 1 and r.arrival_date > 100
            ]
            waits[node].append(float(np.mean(times)))
    for found, station in zip(waits, ours.stations, strict=True):
        assert abs(np.mean(found) - station.wait_s) < max(5 * np.std(found, ddof=1) / 2, 0.15 * station.wait_s)
    assert ours.response_s * 4 == pytest.approx(sum(station.in_system for station in ours.stations))


def test_a_closed_network_as_ciw_simulates_it():
    # Six customers think (a station with enough servers), then queue at one of two servers.
    class Start(ciw.dists.Distribution):
        """Six arrivals at the beginning, and none after."""

        def __init__(self) -> None:
            self.left = 6

        def sample(self, t=None, ind=None):
            self.left -= 1
            return 0.0 if self.left >= 0 else float("inf")

    found = []
    for seed in range(3):
        network = ciw.create_network(
            arrival_distributions=[Start(), None],
            service_distributions=[ciw.dists.Exponential(rate=1 / 2.0), ciw.dists.Exponential(rate=1 / 0.5)],
            routing=[[0.0, 1.0], [1.0, 0.0]],
            number_of_servers=[6, 1],
        )
        ciw.seed(seed)
        simulation = ciw.Simulation(network)
        simulation.simulate_until_max_time(3000)
        served = [r for r in simulation.get_all_records() if r.node == 2 and r.exit_date > 100]
        found.append(len(served) / 2900)
    assert np.mean(found) == pytest.approx(mva([0.5], 6, 2.0).throughput[0], rel=0.02)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: JacksonNetwork([1.0], [1.0], [[1.0]]).stations, "leave"),
        (lambda: JacksonNetwork([1.0], [1.0], [[1.5]]).stations, "at most 1"),
        (lambda: JacksonNetwork([1.0, 0.0], [1.0], [[0, 0], [0, 0]]).stations, "as many"),
        (lambda: mva([[0.1], [0.1], [0.1]], [500, 500, 500]), "schweitzer"),
        (lambda: mva([0.1], -1), "population"),
        (lambda: mva([0.0], 1), "take no time"),
        (lambda: mva([[0.1]], [1, 2]), "2 classes"),
        (lambda: mva([0.1], 2, [1.0, 2.0]), "think_s"),
        (lambda: normalising_constants([0.1], 0), "population"),
        (lambda: normalising_constants([0.1], 2, 0.0, [[0.0]]), "speeds"),
    ],
)
def test_what_is_no_network_is_refused(wrong, words):
    with pytest.raises(ArmillaryError, match=words):
        wrong()
