"""Markov chains against linear algebra of scipy, and the batch server against the queues that it contains."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, linalg

from armillary.errors import ArmillaryError
from armillary.plan.batch_server import BatchServer, birth_death, service_rates
from armillary.plan.markov import absorption, after_seconds, after_steps, stationary
from armillary.plan.queueing import MMc, ProcessorSharing


def generator(n: int, seed: int) -> np.ndarray:
    rates = np.random.default_rng(seed).exponential(size=(n, n))
    np.fill_diagonal(rates, 0)
    return rates - np.diag(rates.sum(axis=1))


@settings(max_examples=30)
@given(n=st.integers(1, 12), seed=st.integers(0, 1000))
def test_the_long_run_is_the_null_space(n, seed):
    chain = generator(n, seed)
    null = linalg.null_space(chain.T)[:, 0]
    np.testing.assert_allclose(stationary(chain), null / null.sum(), rtol=1e-9)
    jumps = np.eye(n) + chain / (1 - 2 * chain.diagonal().min())
    np.testing.assert_allclose(stationary(jumps), null / null.sum(), rtol=1e-9)


def test_tiny_probabilities_keep_their_digits():
    # Ten orders of magnitude less likely from state to state: 1e-10, 1e-20, ... 1e-200.
    n = 21
    chain = np.diag(np.full(n - 1, 1.0), 1) + np.diag(np.full(n - 1, 1e10), -1)
    chain -= np.diag(chain.sum(axis=1))
    np.testing.assert_allclose(stationary(chain), 1e-10 ** np.arange(n) * (1 - 1e-10), rtol=1e-12)


@settings(max_examples=30)
@given(n=st.integers(1, 10), seed=st.integers(0, 1000), seconds=st.floats(0, 40))
def test_after_a_time_is_the_matrix_exponential(n, seed, seconds):
    chain = generator(n, seed)
    start = np.zeros(n)
    start[0] = 1.0
    np.testing.assert_allclose(after_seconds(chain, start, seconds), linalg.expm(chain * seconds)[0], atol=1e-10)


def test_a_long_time_ends_in_the_long_run():
    chain = generator(6, 9) * 1000
    np.testing.assert_allclose(after_seconds(chain, np.eye(6)[2], 2.0), stationary(chain), atol=1e-10)
    np.testing.assert_allclose(
        after_steps(np.eye(6) + chain / 20_000, np.eye(6)[2], 4000), stationary(chain), atol=1e-9
    )


def test_the_gamblers_ruin():
    # From i of n with a fair coin: i (n - i) games, ruin with probability 1 - i/n.
    n = 8
    chain = np.zeros((n + 1, n + 1))
    for i in range(1, n):
        chain[i, i - 1] = chain[i, i + 1] = 0.5
    chain[0, 0] = chain[n, n] = 1.0
    times, shares = absorption(chain, [0, n])
    i = np.arange(n + 1)
    np.testing.assert_allclose(times, i * (n - i), atol=1e-9)
    np.testing.assert_allclose(shares[:, 0], 1 - i / n, atol=1e-12)


def test_absorption_in_seconds():
    # Exponential stages one after another, at rates 1, 2 and 4.
    chain = np.diag([-1.0, -2.0, -4.0, 0.0]) + np.diag([1.0, 2.0, 4.0], 1)
    times, shares = absorption(chain, [3])
    np.testing.assert_allclose(times, [1.75, 0.75, 0.25, 0.0])
    np.testing.assert_allclose(shares[:, 0], 1.0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: stationary([[0.5, 0.5], [0.0, 1.0]]), "every state"),
        (lambda: stationary([[0.5, 0.4], [0.5, 0.5]]), "sum to 1"),
        (lambda: stationary([[1.0, 0.0]]), "square"),
        (lambda: absorption([[1.0, 0.0], [0.0, 1.0]], [1]), "absorbing"),
        (lambda: absorption([[1.0]], [3]), "states from 0"),
        (lambda: after_seconds([[-1.0, 1.0], [1.0, -1.0]], [0.5, 0.6], 1.0), "sum to 1"),
        (lambda: after_seconds([[0.0, 1.0], [1.0, 0.0]], [0.5, 0.5], 1.0), "generator"),
        (lambda: after_steps([[-1.0, 1.0], [1.0, -1.0]], [0.5, 0.5], 1), "transition"),
        (lambda: birth_death([1.0], [0.0]), "above 0"),
        (lambda: BatchServer(1.0, np.array([])), "rates"),
        (lambda: BatchServer(1.0, np.array([1.0, 2.0]), 1), "capacity"),
    ],
)
def test_what_is_no_chain_is_refused(wrong, words):
    with pytest.raises(ArmillaryError, match=words):
        wrong()


@settings(max_examples=40)
@given(servers=st.integers(1, 50), load=st.floats(0.05, 0.97), level=st.floats(0.1, 0.995))
def test_a_batch_that_never_slows_down_is_m_m_c(servers, load, level):
    exact = MMc(load * servers / 0.2, 0.2, servers)
    batch = BatchServer(exact.rate, service_rates(lambda n: 0.002, 100, servers))
    assert batch.response_s == pytest.approx(exact.response_s, rel=1e-9)
    assert batch.residence_s == pytest.approx(0.2, rel=1e-9)
    assert batch.wait_s == pytest.approx(exact.wait_s, rel=1e-8, abs=1e-12)
    assert batch.wait_quantile(level) == pytest.approx(exact.wait_quantile(level), rel=1e-6, abs=1e-9)


def test_a_batch_that_gains_nothing_is_processor_sharing():
    shared = ProcessorSharing(0.7, 1.0)
    batch = BatchServer(0.7, np.ones(70), 70)
    assert batch.response_s == pytest.approx(shared.response_s, rel=1e-9)
    assert batch.distribution[5] == pytest.approx(shared.in_system_tail(4) - shared.in_system_tail(5))
    # The variance of the response of M/M/1 under processor sharing (Coffman, Muntz and Trotter, 1970).
    t = np.linspace(0, 100, 201)
    tails = np.array([batch.response_tail(float(x)) for x in t])
    moment = float(integrate.trapezoid(2 * t * tails, t))
    variance = shared.response_s**2 * (2 + 0.7) / (2 - 0.7)
    assert moment - shared.response_s**2 == pytest.approx(variance, rel=0.01)
    assert batch.response_tail(batch.response_quantile(0.9)) == pytest.approx(0.1, abs=1e-6)


def test_the_chain_of_the_batch_server_is_solved_alike_by_elimination():
    rates = service_rates(lambda n: 0.01 + 0.002 * n, 50, 8)
    batch = BatchServer(6.0, rates, 30)
    chain = np.diag(np.full(30, 6.0), 1) + np.diag(np.concatenate([rates, np.full(22, rates[-1])]), -1)
    chain -= np.diag(chain.sum(axis=1))
    np.testing.assert_allclose(batch.distribution, stationary(chain), rtol=1e-10)
    assert batch.throughput == pytest.approx(6.0 * (1 - batch.lost))
    assert batch.in_system == pytest.approx(batch.running + batch.waiting)
    assert batch.response_s == pytest.approx(batch.wait_s + batch.residence_s)
    # Departures balance arrivals that were let in.
    leaving = float(batch.distribution[1:] @ np.concatenate([rates, np.full(22, rates[-1])]))
    assert leaving == pytest.approx(batch.throughput)
    area = integrate.trapezoid([batch.wait_tail(float(t)) for t in np.linspace(0, 30, 3001)], dx=0.01)
    assert area == pytest.approx(batch.wait_s, rel=1e-3)


def test_the_erlang_loss_system():
    from armillary.plan.queueing import erlang_b

    assert BatchServer(90.0, np.arange(1.0, 101), 100).lost == pytest.approx(erlang_b(100, 90.0), rel=1e-9)
    assert BatchServer(4900.0, np.arange(1.0, 5001), 5000).lost == pytest.approx(erlang_b(5000, 4900.0), rel=1e-6)


def test_a_batch_server_that_cannot_keep_up():
    batch = BatchServer(10.0, np.array([1.0, 2.0]))
    assert not batch.stable and batch.response_s == math.inf and batch.throughput == 2.0
    assert batch.wait_quantile(0.5) == math.inf
    assert BatchServer(0.0, np.array([4.0])).response_s == 0.25
