"""Warm-up, trends and intervals, against processes whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter
from scipy.stats import binom, norm, t

from armillary.measure.intervals import (
    Interval,
    Series,
    batch_means,
    mean_interval,
    quantile_interval,
    replications,
)
from armillary.measure.outcomes import Outcomes
from armillary.measure.precision import replicate, run_length
from armillary.measure.steady import FALSE_ALARM, kept, mser5, steadiness, trend, under_way


def autoregressive(rng: np.random.Generator, count: int, phi: float) -> Series:
    """Normal with mean 0, variance 1/(1 - phi^2), correlation phi of neighbours."""
    return lfilter([1.0], [1.0, -phi], rng.standard_normal(count + 300))[300:]


def waits(rng: np.random.Generator, count: int, load: float, before: int = 0) -> Series:
    """Waiting times of an M/M/1 queue of mean service 1 (Lindley), after `before` others."""
    gaps, service = rng.exponential(1 / load, count + before), rng.exponential(1.0, count + before)
    walk = np.concatenate([[0.0], np.cumsum(service[:-1] - gaps[1:])])
    return (walk - np.minimum.accumulate(walk))[before:]


def queue(rng: np.random.Generator, count: int, load: float, service: float = 1.0) -> Outcomes:
    """An M/M/1 run from its empty beginning; the first token comes when service begins."""
    gaps, work = rng.exponential(service / load, count), rng.exponential(service, count)
    due = np.cumsum(gaps)
    walk = np.concatenate([[0.0], np.cumsum(work[:-1] - gaps[1:])])
    first = due + (walk - np.minimum.accumulate(walk)) + 0.01 * service
    whole = np.full(count, 10)
    return Outcomes(due, first, first + work, whole, whole, whole * 0, np.ones(count, dtype=np.bool_))


def test_intervals_cover_as_often_as_they_say_where_neighbours_depend_on_each_other() -> None:
    rng = np.random.default_rng(1)
    runs = 120
    for phi in (0.0, 0.5, 0.9):
        sigma = 1 / math.sqrt(1 - phi**2)
        covered = {"mean": 0, 0.5: 0, 0.95: 0}
        for _ in range(runs):
            series = autoregressive(rng, 4000, phi)
            covered["mean"] += mean_interval(series).holds(0.0)
            for level in (0.5, 0.95):
                covered[level] += quantile_interval(series, level).holds(norm.ppf(level) * sigma)
        for count in covered.values():
            assert 0.89 * runs <= count <= 0.995 * runs, (phi, covered)


def test_intervals_cover_the_waits_of_a_queue() -> None:
    rng = np.random.default_rng(2)
    runs, load = 120, 0.7
    mean, p95 = load / (1 - load), math.log(load / 0.05) / (1 - load)
    held = [(mean_interval(x).holds(mean), quantile_interval(x, 0.95).holds(p95))
            for x in (waits(rng, 20_000, load, before=2000) for _ in range(runs))]  # fmt: skip
    assert all(0.87 * runs <= count <= runs for count in np.sum(held, axis=0))


def test_a_naive_interval_would_not_cover() -> None:
    """The test of coverage can fail: taking dependent values for independent ones is what it catches."""
    rng = np.random.default_rng(3)
    naive = 0
    for _ in range(100):
        series = autoregressive(rng, 4000, 0.9)
        naive += abs(series.mean()) <= 1.96 * series.std() / math.sqrt(4000)
    assert naive < 60


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_independent_values_have_the_ranks_of_the_binomial(level: float) -> None:
    count = 500
    found = quantile_interval(np.random.default_rng(4).permutation(np.arange(1.0, count + 1)), level)
    low, high = binom.ppf([0.025, 0.975], count, level)
    assert abs(found.low - low) <= 6
    assert abs(found.high - (high + 1)) <= 6


def test_what_the_run_cannot_bound_is_open() -> None:
    found = quantile_interval(np.random.default_rng(5).exponential(size=100), 0.99)
    assert found.high == math.inf
    assert found.relative == math.inf
    assert quantile_interval(np.ones(1), 0.5) == Interval(1.0, -math.inf, math.inf)
    constant = quantile_interval(np.ones(500), 0.5)
    assert (constant.low, constant.value, constant.high) == (1.0, 1.0, 1.0)
    assert mean_interval(np.ones(3)).low == -math.inf


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=400), st.sampled_from([0.5, 0.9, 0.99]))
@settings(deadline=None, max_examples=60)
def test_a_percentile_lies_within_its_own_interval(values: list[float], level: float) -> None:
    found = quantile_interval(np.array(values), level)
    assert found.low <= found.value <= found.high
    assert found.value in values


def test_replications_are_students() -> None:
    values = [3.0, 4.0, 5.0, 8.0]
    found = replications(values)
    assert (found.low, found.high) == pytest.approx(t.interval(0.95, 3, np.mean(values), np.std(values, ddof=1) / 2))
    assert replications([2.0]) == Interval(2.0, -math.inf, math.inf)


def test_fewer_batches_are_taken_where_neighbours_depend() -> None:
    rng = np.random.default_rng(6)
    assert len(batch_means(rng.standard_normal(3200))[0]) == 32
    means, left = batch_means(np.arange(3200.0))
    assert len(means) == 8
    assert left > 0.2
    assert len(batch_means(np.ones(15))[0]) == 0


def test_a_transient_is_cut_where_it_ends() -> None:
    rng = np.random.default_rng(7)
    for length in (0, 200, 600):
        series = rng.standard_normal(3000) + 8 * np.exp(-np.arange(3000) / max(1, length / 4)) * (length > 0)
        # The transient has shrunk to e^-4 of its size by `length`.
        assert abs(mser5(series) - length) <= 250
    assert mser5(np.arange(1000.0)) == 500, "what never settles is cut as far as may be"
    assert [mser5(np.ones(n)) for n in (0, 3, 9, 10, 1000)] == [0] * 5
    # By its definition, without the sums that make it quick.
    series = waits(rng, 1003, 0.8)
    means = series[:1000].reshape(200, 5).mean(axis=1)
    errors = [means[d:].var() / (200 - d) for d in range(101)]
    assert mser5(series) == 5 * int(np.argmin(errors))


def test_false_alarms_are_as_rare_as_promised() -> None:
    rng = np.random.default_rng(8)
    runs = 300
    alarms = sum(
        trend(autoregressive(rng, 2000, phi)).chance < FALSE_ALARM for phi in (0.0, 0.5, 0.8) for _ in range(runs)
    )
    assert alarms <= binom.ppf(0.999, 3 * runs, 2 * FALSE_ALARM)
    called = [steadiness(queue(rng, 4000, 0.6)).verdict for _ in range(100)]
    assert called.count("steady") >= 97


@pytest.mark.parametrize(("load", "count"), [(1.15, 2000), (1.3, 1000), (2.0, 300), (20.0, 300), (50.0, 1000)])
def test_overload_is_called_unstable(load: float, count: int) -> None:
    rng = np.random.default_rng(9)
    called = [steadiness(queue(rng, count, load)).verdict for _ in range(40)]
    assert called.count("unstable") >= 38


def test_a_run_of_seconds_says_nothing_about_requests_of_minutes() -> None:
    """A thousand requests within five seconds, each staying for twenty, look alike on any number of replicas."""
    rng = np.random.default_rng(10)
    due = np.sort(rng.uniform(0, 5, 1000))
    whole = np.full(1000, 10)
    run = Outcomes(
        due, due + 0.1, due + rng.uniform(10, 30, 1000), whole, whole, whole * 0, np.ones(1000, dtype=np.bool_)
    )
    assert steadiness(run).verdict == "short"
    assert steadiness(queue(rng, 30, 0.5)).verdict == "short"
    at_once = Outcomes(due * 0, due, due + 1, whole, whole, whole * 0, run.ok)
    assert steadiness(at_once).verdict == "batch"
    assert steadiness(at_once, users=1000).verdict != "batch", "a closed loop begins so"


def test_latencies_that_rise_without_a_backlog_drift() -> None:
    rng = np.random.default_rng(11)
    due = np.cumsum(rng.exponential(1.0, 2000))
    whole = np.full(2000, 10)
    ttft = np.linspace(0.1, 0.5, 2000) * rng.uniform(0.9, 1.1, 2000)
    run = Outcomes(due, due + ttft, due + ttft + 1.0, whole, whole, whole * 0, np.ones(2000, dtype=np.bool_))
    found = steadiness(run)
    assert found.verdict == "drifting"
    assert found.has_percentiles
    assert steadiness(run, users=4).verdict == "drifting"


def test_a_warm_up_is_found_and_left_out() -> None:
    rng = np.random.default_rng(12)
    run = queue(rng, 3000, 0.4)
    slow = np.where(np.arange(3000) < 300, 20.0, 0.0)
    run = Outcomes(
        run.due, run.first + slow, run.end + slow, run.prompt_tokens, run.output_tokens, run.cached_tokens, run.ok
    )
    found = steadiness(run)
    assert found.verdict == "steady"
    assert 300 <= found.warmup <= 700
    assert len(kept(run, found)) == 3000 - found.warmup
    assert kept(run, found).due[0] == found.start_s


def test_requests_under_way_are_counted_as_by_hand() -> None:
    run = queue(np.random.default_rng(13), 300, 0.9)
    by_hand = [int(((run.due <= at) & (run.end > at)).sum()) for at in run.due]
    assert under_way(run).tolist() == by_hand


def test_a_run_is_lengthened_until_it_is_precise() -> None:
    lengths: list[int] = []
    whole = autoregressive(np.random.default_rng(14), 200_000, 0.5) + 10

    def run(length: int) -> Series:
        lengths.append(length)
        return whole[:length]

    found = run_length(run, mean_interval, 0.005, first=500)
    assert found.reached
    assert found.took == lengths[-1] > 500
    assert lengths == sorted(lengths)
    assert found.interval.relative <= 0.005
    never = run_length(run, mean_interval, 1e-9, first=500, most=3000)
    assert (never.reached, never.took) == (False, 3000)


def test_runs_are_repeated_until_their_mean_is_precise() -> None:
    found = replicate(lambda seed: 10 + np.random.default_rng(seed).standard_normal(), 0.05)
    assert found.reached
    assert 5 <= found.took < 100
    assert replicate(lambda seed: 7.0, 0.01).took == 5
    assert not replicate(lambda seed: float(seed), 0.01, most=6).reached
