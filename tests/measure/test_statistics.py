"""Percentiles, their intervals, and runs in turns."""

from __future__ import annotations

import math

import numpy as np
import pytest

from armillary.measure.record import Outcome, RequestRecord
from armillary.measure.series import bin_width, cumulative, gaps_over_time, outstanding, throughput
from armillary.measure.slo import Slo
from armillary.measure.statistics import Spread, distribution, interleaved, quantile, ratios
from armillary.measure.summary import peak_outstanding, summarise


def test_quantile_is_a_value_of_the_sample_with_enough_of_it_below() -> None:
    values = np.random.default_rng(0).normal(size=137).tolist()
    for level in (0.01, 0.5, 0.9, 0.95, 0.99, 1.0):
        found = quantile(values, level)
        assert found in values
        assert sum(value <= found for value in values) >= level * len(values) - 1e-9
        assert sum(value < found for value in values) < level * len(values)
    assert quantile([3.0], 0.99) == 3.0
    assert quantile(range(1, 101), 0.95) == 95


def test_intervals_cover_the_true_percentile_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    true = {0.5: math.log(2), 0.9: math.log(10)}
    covered = {0.5: 0, 0.9: 0}
    runs = 150
    for run in range(runs):
        found = distribution(rng.exponential(size=200).tolist(), seed=run)
        assert found is not None
        covered[0.5] += found.p50.low <= true[0.5] <= found.p50.high
        covered[0.9] += (found.p90.low or 0.0) <= true[0.9] <= (found.p90.high or math.inf)
    for count in covered.values():
        assert 0.88 * runs <= count <= 0.995 * runs


def test_values_of_one_request_are_drawn_together() -> None:
    """Twenty requests of 100 equal gaps are twenty observations, not two thousand."""
    levels = np.random.default_rng(3).normal(10, 1, size=20)
    values = np.repeat(levels, 100).tolist()
    owners = np.repeat(np.arange(20), 100).tolist()
    mixed = np.random.default_rng(4).permutation(values)
    together, apart = distribution(values, owners), distribution(mixed)
    assert together is not None
    assert apart is not None
    assert together.p50.value == apart.p50.value
    assert together.p50.high - together.p50.low > 2 * (apart.p50.high - apart.p50.low)


def test_ranks_and_the_bootstrap_agree() -> None:
    """Order statistics and the bootstrap say the same where every value is a group of its own."""
    values = np.random.default_rng(4).exponential(size=60).tolist()
    short, long = distribution(values), distribution(values, range(60))
    assert short is not None
    assert long is not None
    ordered = sorted(values)
    for name in ("p50", "p90"):
        one, other = getattr(short, name), getattr(long, name)
        assert abs(ordered.index(one.low) - ordered.index(other.low)) <= 4
        assert abs(ordered.index(one.high) - ordered.index(other.high)) <= 4


def test_an_empty_sample_has_no_distribution() -> None:
    assert distribution([]) is None
    with pytest.raises(ValueError, match="empty"):
        quantile([], 0.5)


def test_a_large_sample_is_summarised_quickly_enough_to_be_used() -> None:
    found = distribution(np.random.default_rng(0).exponential(size=100_000).tolist())
    assert found is not None
    assert found.p99.low < math.log(100) < found.p99.high


def test_variants_run_in_turns_and_in_both_orders() -> None:
    order: list[str] = []
    results = interleaved({"a": lambda: order.append("a") or 1.0, "b": lambda: order.append("b") or 2.0}, 4)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert ratios(results["b"], results["a"]).values == (2.0,) * 4
    spread = Spread((3.0, 1.0, 2.0))
    assert (spread.median, spread.low, spread.high) == (2.0, 1.0, 3.0)
    assert f"{spread:.1f}" == "2.0 (1.0 to 3.0)"


def record(index: int, due: float, ttft: float, gaps: list[float], **fields: object) -> RequestRecord:
    return RequestRecord(
        id=str(index), due=due, sent=due, first=due + ttft, end=due + ttft + sum(gaps), gaps=gaps,
        outcome=Outcome.OK, status=200, output_tokens=len(gaps) + 1, **fields,
    )  # fmt: skip


def test_goodput_counts_requests_that_meet_every_bound() -> None:
    records = [
        record(0, 0.0, 0.1, [0.01] * 9),
        record(1, 0.0, 0.5, [0.01] * 9),  # TTFT too long
        record(2, 0.0, 0.1, [0.05] * 9),  # TPOT too long
        record(3, 0.0, 0.1, []),  # one token: no TPOT to miss
        record(4, 0.0, 0.1, [0.01] * 9, deadline=0.15),  # its own deadline missed
        RequestRecord(id="5", due=0.0, outcome=Outcome.SHED, status=429, error="busy"),
    ]
    summary = summarise(records, 2.0, Slo.parse("ttft p95 200ms, tpot p95 20ms, e2e p95 1s"))
    assert (summary.goodput.good, summary.goodput.requests_per_s, summary.goodput.tokens_per_s) == (2, 1.0, 5.5)
    assert summary.goodput.share == pytest.approx(2 / 6)
    assert summarise(records, 2.0, Slo()).goodput.good == 4


def test_an_unstable_run_gets_no_percentiles_and_says_why() -> None:
    queue = [record(i, i * 0.1, 0.1 + 0.05 * i, [0.01] * 3) for i in range(400)]
    duration = max(r.end or 0.0 for r in queue)
    summary = summarise(queue, duration, Slo.parse("ttft p95 200ms"))
    assert summary.steadiness.verdict == "unstable"
    assert [summary.ttft, summary.tpot, summary.itl, summary.e2e, summary.worst_gap] == [None] * 5
    assert summary.goodput.objectives == [], "a percentile by another name"
    assert summary.goodput.good == 3, "goodput counts, and stays"
    assert any("did not keep up" in note for note in summary.notes)


def test_warm_up_is_left_out_of_latencies_and_not_of_counts() -> None:
    rng = np.random.default_rng(0)
    noise = [record(i, i * 0.1, float(x), []) for i, x in enumerate(rng.uniform(0.1, 0.3, size=400))]
    cold = [record(i, i * 0.1, 3.0, []) for i in range(50)] + noise[50:]
    summary = summarise(cold, 50.0, Slo.parse("ttft p95 500ms"))
    assert (summary.steadiness.verdict, summary.steadiness.warmup, summary.requests) == ("steady", 50, 400)
    assert summary.ttft is not None
    assert summary.ttft.count == 350
    assert summary.ttft.maximum < 0.31
    assert summary.goodput.objectives[0].met
    assert summary.goodput.good == 350
    assert any("first 50 requests" in note for note in summary.notes)
    assert [law.name for law in summary.laws] == ["little"]
    assert all(law.holds for law in summary.laws)


def test_series_conserve_what_they_show() -> None:
    records = [record(i, 0.3 * i, 0.2, [0.1] * (i % 5)) for i in range(30)]
    duration = max(r.end or 0.0 for r in records)
    width = bin_width(duration)
    shown = sum(rate * width for _, rate in throughput(records, duration)[:-1])
    tokens = sum(r.output_tokens for r in records)
    assert shown <= tokens
    assert shown >= tokens - 10
    assert {gap for _, gap in gaps_over_time(records, duration, 0.99)} == {0.1}
    assert max(n for _, n in outstanding(records, duration)) <= peak_outstanding(records)
    curve = cumulative([float(x) for x in range(1000, 0, -1)])
    assert curve[0] == (1.0, 0.001)
    assert curve[-1] == (1000.0, 1.0)
    assert len(curve) <= 200
    assert cumulative([]) == []


@pytest.mark.parametrize("duration", [0.001, 0.5, 7.0, 60.0, 3600.0])
def test_bins_are_round_and_neither_few_nor_many(duration: float) -> None:
    assert 25 <= duration / bin_width(duration) <= 80
