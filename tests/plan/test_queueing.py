"""Closed forms against textbook tables, other formulas for the same thing, and simulations of a few lines."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from armillary.errors import ArmillaryError
from armillary.plan.queueing import MG1, MGc, MMc, ProcessorSharing, erlang_b, erlang_c
from armillary.plan.service import Gamma, Measured, Service

LOADS = st.floats(0.01, 0.98)


def lindley(rate: float, services: np.ndarray, seed: int) -> np.ndarray:
    """Waits of a single server in order of arrival: W' = max(0, W + S - A), as a walk above its running minimum."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, len(services))
    walk = np.concatenate([[0.0], np.cumsum(services[:-1] - gaps[1:])])
    return walk - np.minimum.accumulate(walk)


def close_to(samples: np.ndarray, expected: float, batches: int = 30) -> bool:
    """Whether the mean of a correlated sample is within its own 99.9 % interval of what was expected."""
    means = np.array([part.mean() for part in np.array_split(samples, batches)])
    return bool(abs(means.mean() - expected) <= stats.t.ppf(0.9995, batches - 1) * means.std(ddof=1) / batches**0.5)


@pytest.mark.parametrize(
    ("servers", "load", "blocked"),
    # Rows of the usual Erlang B tables: the load at which so many lines lose 1 % and 0.1 %.
    [(1, 0.0101, 0.01), (5, 1.361, 0.01), (10, 4.461, 0.01), (20, 12.03, 0.01), (100, 84.06, 0.01), (10, 3.092, 0.001)],
)
def test_erlang_b_has_the_values_of_the_tables(servers, load, blocked):
    assert erlang_b(servers, load) == pytest.approx(blocked, rel=3e-3)


@pytest.mark.parametrize(("servers", "load"), [(3, 2.0), (1000, 950.0), (5000, 5100.0), (20_000, 19_900.0)])
def test_erlang_b_is_the_poisson_ratio_for_thousands_of_servers(servers, load):
    poisson = stats.poisson(load)
    assert erlang_b(servers, load) == pytest.approx(poisson.pmf(servers) / poisson.cdf(servers), rel=1e-8)


def test_erlang_c_by_hand():
    # Two servers, load 1: 1/3 of arrivals wait; three servers, load 2: 4/9.
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert erlang_c(3, 2.0) == pytest.approx(4 / 9)
    assert erlang_c(3, 3.0) == 1.0


@given(load=LOADS, service=st.floats(1e-4, 1e3), level=st.floats(0.0, 0.9999))
@example(load=0.978515625, service=1.0, level=0.9999)
def test_one_server_is_m_m_1(load, service, level):
    queue = MMc(load / service, service)
    assert queue.wait_s == pytest.approx(load * service / (1 - load), rel=1e-9)
    assert queue.in_system == pytest.approx(load / (1 - load), rel=1e-9)
    response = -math.log(1 - level) * service / (1 - load)
    assert queue.response_quantile(level) == pytest.approx(response, rel=1e-6, abs=1e-9 * service)
    wait = max(0.0, math.log(load / (1 - level)) * service / (1 - load))
    assert queue.wait_quantile(level) == pytest.approx(wait, rel=1e-6, abs=1e-9 * service)


@given(load=LOADS, service=st.floats(1e-3, 1e2))
def test_exponential_service_makes_pollaczek_and_khinchine_m_m_1(load, service):
    general, markovian = MG1(load / service, Gamma(service, 1.0)), MMc(load / service, service)
    assert general.wait_s == pytest.approx(markovian.wait_s, rel=1e-9)
    assert general.in_system == pytest.approx(markovian.in_system, rel=1e-9)
    for t in (0.1 * service, service, 5 * service):
        assert general.wait_tail(t) == pytest.approx(markovian.wait_tail(t), abs=1e-6)
        assert general.response_tail(t) == pytest.approx(markovian.response_tail(t), abs=1e-6)
    # Both moments of the wait, from its tail.
    assert general.wait_variance == pytest.approx(service**2 * load * (2 - load) / (1 - load) ** 2, rel=1e-9)


@given(servers=st.integers(1, 60), load=LOADS, scv=st.floats(0, 8))
def test_the_approximation_is_exact_where_it_should_be(servers, load, scv):
    exact = MMc(load * servers, 1.0, servers)
    assert MGc(load * servers, Gamma(1.0), servers).wait_s == pytest.approx(exact.wait_s, rel=1e-9)
    assert MGc(load, Gamma(1.0, scv)).wait_s == pytest.approx(MG1(load, Gamma(1.0, scv)).wait_s, rel=1e-9)


def test_constant_service_has_crommelins_distribution():
    # P(W <= t) of M/D/1 as a sum of alternating terms, good while there are few of them.
    load = 0.7
    queue = MG1(load, Gamma(1.0, 0.0))
    for t in (0.3, 1.7, 4.2, 6.5):
        below = (1 - load) * sum(
            (-load * (t - k)) ** k / math.factorial(k) * math.exp(load * (t - k)) for k in range(int(t) + 1)
        )
        assert queue.wait_tail(t) == pytest.approx(1 - below, abs=3e-5)
    assert queue.response_quantile(0.9) == pytest.approx(1 + queue.wait_quantile(0.9))
    assert queue.response_tail(0.999) == 1.0
    assert queue.wait_s == pytest.approx(load / (2 * (1 - load)))


@pytest.mark.parametrize("kind", ["gamma", "measured"])
def test_waits_of_general_service_as_simulated(kind):
    rng = np.random.default_rng(5)
    if kind == "gamma":
        service: Service = Gamma(0.1, 2.5)
        times = rng.gamma(1 / 2.5, 0.1 * 2.5, 600_000)
    else:
        table = np.array([0.02, 0.02, 0.05, 0.4])
        service, times = Measured(table), rng.choice(table, 600_000)
    rate = 0.75 / service.mean_s
    queue, waits = MG1(rate, service), lindley(rate, times, 6)
    assert close_to(waits, queue.wait_s)
    assert close_to(waits**2, queue.wait_variance + queue.wait_s**2)
    assert close_to(waits > 0.2, queue.wait_tail(0.2))
    # Off the sums of service times, where the response of measured times has jumps.
    assert close_to(waits + times > 0.5031, queue.response_tail(0.5031))
    for level in (0.5, 0.95):
        assert close_to(waits <= queue.wait_quantile(level), level)
    assert queue.wait_quantile(0.2) == 0.0


def test_vacations_as_simulated():
    rng = np.random.default_rng(1)
    rate, service, away = 4.0, 0.15, 0.08
    arrivals = np.cumsum(rng.exponential(1 / rate, 200_000))
    free, waits = 0.0, np.empty(len(arrivals))
    for i, arrival in enumerate(arrivals.tolist()):
        if arrival > free:  # constant vacations, one after another, until one ends after the arrival
            free += math.ceil((arrival - free) / away) * away
        waits[i] = free - arrival
        free += rng.exponential(service)
    queue = MG1(rate, Gamma(service), Gamma(away, 0.0))
    assert close_to(waits, queue.wait_s)
    assert close_to((waits - queue.wait_s) ** 2, queue.wait_variance)
    assert close_to(waits <= queue.wait_quantile(0.9), 0.9)
    assert queue.wait_tail(0.0) == 1.0 and MG1(rate, Gamma(service)).wait_s < queue.wait_s


def test_several_servers_as_simulated():
    import heapq

    rng = np.random.default_rng(3)
    queue = MMc(7.0, 0.5, 4)
    arrivals = np.cumsum(rng.exponential(1 / queue.rate, 200_000))
    services = rng.exponential(queue.service_s, len(arrivals))
    free, waits = [0.0] * queue.servers, np.empty(len(arrivals))
    for i, (arrival, service) in enumerate(zip(arrivals.tolist(), services.tolist(), strict=True)):
        start = max(arrival, free[0])
        heapq.heapreplace(free, start + service)
        waits[i] = start - arrival
    assert close_to(waits, queue.wait_s)
    assert close_to(waits > 0, queue.wait_probability)
    assert close_to(waits + services > 1.5, queue.response_tail(1.5))
    for level in (0.5, 0.95, 0.99):
        assert close_to(waits + services <= queue.response_quantile(level), level)
        assert close_to(waits <= queue.wait_quantile(level), max(level, 1 - queue.wait_probability))


def test_the_approximation_for_several_servers_is_near_a_simulation():
    import heapq

    rng = np.random.default_rng(4)
    service = Gamma(1.0, 0.25)
    queue = MGc(3.4, service, 4)
    arrivals = np.cumsum(rng.exponential(1 / queue.rate, 150_000))
    free, total = [0.0] * 4, 0.0
    for arrival, time in zip(arrivals.tolist(), rng.gamma(4, 0.25, len(arrivals)).tolist(), strict=True):
        start = max(arrival, free[0])
        heapq.heapreplace(free, start + time)
        total += start - arrival
    assert queue.wait_s == pytest.approx(total / len(arrivals), rel=0.05)


@settings(max_examples=40)
@given(servers=st.integers(1, 400), load=LOADS, level=st.floats(0.01, 0.999))
def test_tails_and_quantiles_are_inverse(servers, load, level):
    queue = MMc(load * servers, 1.0, servers)
    assert queue.response_tail(queue.response_quantile(level)) == pytest.approx(1 - level, rel=1e-6)
    wait = queue.wait_quantile(level)
    assert queue.wait_tail(wait) == pytest.approx(min(1 - level, queue.wait_probability), rel=1e-6)


def test_where_the_two_rates_of_the_response_coincide():
    # servers - 1 - load = 0 divides by zero in the usual form.
    queue, beside = MMc(2.0, 1.0, 3), MMc(2.0 + 1e-7, 1.0, 3)
    assert queue.response_tail(1.3) == pytest.approx(beside.response_tail(1.3), rel=1e-5)


def test_processor_sharing():
    queue = ProcessorSharing(8.0, 0.1)
    assert queue.response_s == pytest.approx(MMc(8.0, 0.1).response_s)
    assert queue.response_of_s(1.0) == pytest.approx(5.0)
    assert queue.in_system == pytest.approx(4.0)
    assert queue.in_system_tail(0) == pytest.approx(0.8)


def test_more_work_than_servers_has_endless_waits():
    for queue in (MMc(2.0, 1.0), MG1(2.0, Gamma(1.0)), MGc(2.0, Gamma(1.0))):
        assert not queue.stable and queue.wait_s == math.inf and queue.wait_quantile(0.5) == math.inf
    assert ProcessorSharing(2.0, 1.0).response_s == math.inf


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: MMc(-1.0, 1.0),
        lambda: MMc(1.0, 0.0),
        lambda: MMc(1.0, 1.0, 0),
        lambda: MMc(math.nan, 1.0),
        lambda: MMc(1.0, 1.0).wait_quantile(1.0),
        lambda: MG1(1.0, Gamma(1.0, -1.0)),
        lambda: MGc(1.0, Gamma(1.0), 0),
        lambda: Measured([]),
        lambda: Measured([1.0, -1.0]),
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ArmillaryError, match="must"):
        wrong()
