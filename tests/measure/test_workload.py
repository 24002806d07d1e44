"""Workloads: what is drawn follows the specification, and the JSONL format loses nothing."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from armillary.errors import ArmillaryError
from armillary.measure.arrivals import parse_arrivals
from armillary.measure.columns import Columns
from armillary.measure.lengths import Fixed, Geometric, Lognormal, Uniform, draw, draw_pairs, parse_lengths
from armillary.measure.presets import PRESETS, workload_of
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.measure.workload import WorkItem, Workload

N = 20_000
P = 1e-3  # seeds are fixed, so a test that passes keeps passing


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def gaps(text: str, rate: float, seed: int = 1) -> np.ndarray:
    return np.diff(parse_arrivals(text).times(N + 1, rate, rng(seed)))


def test_poisson_gaps_are_exponential() -> None:
    drawn = gaps("poisson", rate=4.0)
    assert stats.kstest(drawn, stats.expon(scale=0.25).cdf).pvalue > P
    # The number of arrivals in a second is then Poisson: its variance equals its mean.
    counts = np.bincount(np.cumsum(drawn).astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_gamma_gaps_have_the_stated_rate_and_variation(cv: float) -> None:
    drawn = gaps(f"gamma:{cv}", rate=2.0)
    law, seen = stats.gamma(1 / cv**2, scale=0.5 * cv**2), 1e-6  # shorter gaps are lost in the digits of their times
    assert stats.kstest(drawn[drawn > seen], lambda x: (law.cdf(x) - law.cdf(seen)) / law.sf(seen)).pvalue > P
    assert drawn.mean() == pytest.approx(0.5, rel=0.06)
    assert drawn.std() / drawn.mean() == pytest.approx(cv, rel=0.06)


def test_the_distribution_tests_can_fail() -> None:
    assert stats.kstest(gaps("gamma:1.15", rate=2.0), stats.expon(scale=0.5).cdf).pvalue < P


def test_constant_gaps() -> None:
    assert parse_arrivals("constant").times(3, 4.0, rng()).tolist() == [0.25, 0.5, 0.75]


def test_bursts_have_the_variance_that_theory_gives_them() -> None:
    """Counts of a two-state MMPP: index of dispersion in a window of t (Fischer and Meier-Hellstern 1993)."""
    burst, share, seconds, rate, window = 6.0, 0.2, 5.0, 4.0, 10.0
    times = parse_arrivals(f"mmpp:{burst},{share},{seconds}").times(200_000, rate, rng())
    assert times[-1] == pytest.approx(200_000 / rate, rel=0.05)
    calm = rate / (1 - share + share * burst)
    leave_calm, leave_burst = share / (seconds * (1 - share)), 1 / seconds
    total = leave_calm + leave_burst
    variance_rate = (calm * burst - calm) ** 2 * share * (1 - share)
    expected = 1 + 2 * variance_rate / (rate * total) * (1 - (1 - math.exp(-total * window)) / (total * window))
    counts = np.bincount((times / window).astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(expected, rel=0.06)
    assert expected > 5


def test_a_day_has_its_swing_and_a_profile_its_weights(tmp_path) -> None:
    times = parse_arrivals("diurnal:0.8,100").times(50_000, 5.0, rng())
    edges = np.linspace(0, 100, 11)
    share = np.diff(edges) / 100 + 0.8 * np.diff(-np.cos(2 * np.pi * edges / 100)) / (2 * np.pi)
    assert stats.chisquare(np.histogram(times[times < 9900] % 100, edges)[0], share * (times < 9900).sum()).pvalue > P
    profile = tmp_path / "profile.txt"
    profile.write_text("1, 0, 3\n")
    times = parse_arrivals(f"profile:{profile},10").times(20_000, 2.0, rng())
    counts = np.histogram(times[times < 9900] % 30, [0, 10, 20, 30])[0]
    assert counts[1] == 0
    assert stats.binomtest(int(counts[0]), int(counts.sum()), 0.25).pvalue > P
    with pytest.raises(ArmillaryError, match="not all 0"):
        profile.write_text("0 0")
        parse_arrivals(f"profile:{profile}")
    with pytest.raises(ArmillaryError, match="readable file"):
        parse_arrivals(f"profile:{tmp_path / 'none'}")


@pytest.mark.parametrize("text", ["poisson", "constant", "gamma:2", "mmpp:4,0.1,0.5", "diurnal:0.9,60"])
def test_arrivals_are_in_order_and_have_their_mean_rate(text: str) -> None:
    times = parse_arrivals(text).times(N, 50.0, rng(3))
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert N / times[-1] == pytest.approx(50.0, rel=0.1)


@pytest.mark.parametrize("text", ["poisson", "constant", "gamma:2"])
def test_one_seed_gives_the_same_arrivals_at_every_rate(text: str) -> None:
    one, other = (parse_arrivals(text).times(100, rate, rng(3)) for rate in (1.0, 4.0))
    assert one == pytest.approx(4 * other)


def test_a_rate_that_changes_by_itself_does_so_at_the_same_moments_at_every_rate(tmp_path) -> None:
    """Their seconds are seconds of the clock: the n-th arrival stands where the rate's integral, not the time, is n."""
    (tmp_path / "profile").write_text("1 3 2")
    for text in ("mmpp:20,0.1,5", "diurnal:1,100", f"profile:{tmp_path / 'profile'},20"):
        made = parse_arrivals(text)
        edges = np.arange(0, 1000, 5.0)
        one, other = (
            np.histogram(made.times(round(1000 * rate), rate, rng(3)), edges)[0] / rate for rate in (50.0, 400.0)
        )
        assert np.corrcoef(one, other)[0, 1] > 0.9, text
        assert made.cycle_s in (50.0, 100.0, 60.0)
        assert np.quantile(other, 0.99) / 5 == pytest.approx(made.peak, rel=0.15), text
    for text in ("poisson", "constant", "gamma:2", "mmpp:1,0.1,5", "diurnal:0,9"):
        assert (parse_arrivals(text).cycle_s, parse_arrivals(text).peak) == (0.0, 1.0)


@pytest.mark.parametrize(
    "text",
    ["", "gauss", "gamma", "gamma:0", "gamma:x", "gamma:1e-200", "gamma:1e200",
     "mmpp:2,1,3", "mmpp:0.5,0.1,3", "mmpp:2", "diurnal:2", "diurnal:nan",
     "poisson:3", "profile:", "diurnal:0.5,0"],
)  # fmt: skip
def test_bad_arrivals_are_refused_with_what_would_work(text: str) -> None:
    with pytest.raises(ArmillaryError, match="arrivals must be poisson, constant, gamma:CV"):
        parse_arrivals(text)


def test_uniform_lengths_cover_both_ends_evenly() -> None:
    drawn = draw(Uniform(3, 12), N, rng())
    assert stats.chisquare([Counter(drawn.tolist())[n] for n in range(3, 13)]).pvalue > P
    assert set(drawn.tolist()) == set(range(3, 13))


def test_lognormal_lengths_follow_mean_and_variation() -> None:
    wanted = Lognormal(400, 0.8)
    drawn = draw(wanted, N, rng())
    edges = np.array([0, 100, 200, 300, 400, 600, 900, 1500, np.inf])
    cdf = stats.lognorm(wanted.sigma, scale=np.exp(wanted.mu)).cdf
    # Rounding puts everything below n + 0.5 at n or below.
    expected = np.diff([cdf(e + 0.5) if 0 < e < np.inf else float(e > 0) for e in edges]) * N
    observed = [int(((drawn > low) & (drawn <= high)).sum()) for low, high in zip(edges, edges[1:], strict=False)]
    assert stats.chisquare(observed, expected).pvalue > P
    assert drawn.mean() == pytest.approx(400, rel=0.03)
    assert drawn.std() / drawn.mean() == pytest.approx(0.8, rel=0.06)
    assert draw(Lognormal(400, 0.8, limit=500), N, rng()).max() == 500


def test_geometric_lengths_go_on_with_one_probability() -> None:
    drawn = draw(Geometric(5.0), N, rng())
    counts = np.bincount(np.minimum(drawn, 21), minlength=22)[1:]
    law = stats.geom(1 / 5)
    expected = np.append(law.pmf(np.arange(1, 21)), law.sf(20)) * N
    assert stats.chisquare(counts, expected).pvalue > P
    assert set(draw(Geometric(1.0), 100, rng()).tolist()) == {1}


@pytest.mark.parametrize("wanted", [-0.7, 0.0, 0.5, 0.9])
def test_correlated_lengths_have_the_stated_rank_correlation_and_their_own_distributions(wanted: float) -> None:
    first, second = draw_pairs(Lognormal(500, 1.0), Uniform(1, 4000), wanted, N, rng())
    assert stats.spearmanr(first, second).statistic == pytest.approx(wanted, abs=0.02)
    assert second.mean() == pytest.approx(2000.5, rel=0.02)
    assert first.mean() == pytest.approx(500, rel=0.04)


def test_parsing_lengths() -> None:
    assert parse_lengths("7", "prompt_tokens") == Fixed(7) == parse_lengths(7, "prompt_tokens")
    assert parse_lengths("fixed:7", "prompt_tokens") == Fixed(7)
    assert parse_lengths("uniform:2,5", "prompt_tokens") == Uniform(2, 5)
    assert parse_lengths("lognormal:200,1.5,1024", "output_tokens") == Lognormal(200, 1.5, 1024)
    assert parse_lengths("geometric:3.5", "output_tokens") == Geometric(3.5)


@pytest.mark.parametrize(
    "text",
    ["", "0", "-3", "uniform:5,2", "uniform:5", "lognormal:10", "lognormal:0,1", "lognormal:5,nan", "fixed:1.5",
     "zipf:3", "lognormal:5,1,0.5", "geometric:0.5"],
)  # fmt: skip
def test_bad_lengths_are_refused_with_what_would_work(text: str) -> None:
    with pytest.raises(ArmillaryError, match="a length must be N, fixed:N"):
        parse_lengths(text, "prompt_tokens")


def test_lengths_from_a_trace_keep_pairs_together(tmp_path) -> None:
    trace = tmp_path / "trace.jsonl"
    pairs = [(10, 100), (20, 200), (30, 300)]
    trace.write_text("".join(json.dumps({"prompt_tokens": p, "output_tokens": o}) + "\n" for p, o in pairs))
    spec = WorkloadSpec(requests=3000, prompt_length=f"trace:{trace}", output_length=f"trace:{trace}")
    seen = Counter((item.prompt_tokens, item.output_tokens) for item in synthesise(spec).items)
    assert set(seen) == set(pairs)
    assert stats.chisquare(list(seen.values())).pvalue > P


@pytest.mark.parametrize("line", ["[1]", '{"prompt_tokens": 3}', '{"prompt_tokens": 0, "output_tokens": 1}', "{"])
def test_a_bad_trace_line_is_named(tmp_path, line: str) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"prompt_tokens": 3, "output_tokens": 1}\n' + line + "\n")
    with pytest.raises(ArmillaryError, match=r"trace\.jsonl:2"):
        parse_lengths(f"trace:{trace}", "prompt_tokens")


def test_shared_prefixes_have_the_stated_share_and_popularity() -> None:
    spec = WorkloadSpec(
        requests=N, prompt_length="16", prefixes=8, prefix_length=64, prefix_share=0.6, prefix_zipf=1.1, seed=3
    )
    items = synthesise(spec).items
    carrying = [item for item in items if item.prefix]
    assert stats.binomtest(len(carrying), N, 0.6).pvalue > P
    weights = np.array([1 / k**1.1 for k in range(1, 9)])
    counts = Counter(item.prefix[0][0] for item in carrying)
    expected = weights / weights.sum() * len(carrying)
    assert stats.chisquare([counts[f"p{k}"] for k in range(8)], expected).pvalue > P
    assert {item.prompt_tokens for item in carrying} == {80}
    assert {item.prompt_tokens for item in items if not item.prefix} == {16}


def test_equal_seeds_give_equal_workloads_and_streams_are_apart() -> None:
    spec = WorkloadSpec(requests=50, rate=3.0, prompt_length="uniform:1,99", output_length="lognormal:20,1", seed=5)
    assert synthesise(spec) == synthesise(spec)
    other = synthesise(spec.model_copy(update={"rate": 6.0, "arrivals": "gamma:2"}))
    assert [i.prompt_tokens for i in other.items] == [i.prompt_tokens for i in synthesise(spec).items]
    assert synthesise(spec.model_copy(update={"seed": 6})) != synthesise(spec)


def test_a_closed_loop_has_users_and_think_times_and_no_arrivals() -> None:
    workload = synthesise(WorkloadSpec(requests=N, users=4, think=2.0))
    assert workload.users == 4
    assert all(item.arrival is None for item in workload.items)
    assert stats.kstest([item.think for item in workload.items], stats.expon(scale=2.0).cdf).pvalue > P


def test_writing_and_reading_give_the_same_workload(tmp_path) -> None:
    path = tmp_path / "deep" / "w.jsonl"
    drawn = {
        "requests": 40, "prompt_length": "uniform:2,9", "prefixes": 2, "prefix_length": 5, "prefix_share": 0.5,
        "deadline": 3.0, "turns": "geometric:3", "think": 0.5, "slo_classes": "a 1: ttft p95 1s; b 3: e2e p50 1min",
    }  # fmt: skip
    for spec in (WorkloadSpec(**drawn, rate=5.0), WorkloadSpec(**drawn, users=3), WorkloadSpec(requests=2)):
        workload = synthesise(spec)
        workload.write(path)
        assert Workload.read(path) == workload
        assert [p.name for p in path.parent.iterdir()] == ["w.jsonl"]


def test_a_plain_trace_reads_as_an_open_loop(tmp_path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"prompt_tokens": 5, "output_tokens": 2}\n\n{"arrival": 1.5, "prompt_tokens": 6, "output_tokens": 3}\n'
    )
    workload = Workload.read(path)
    assert [(i.id, i.arrival, i.prompt_tokens) for i in workload.items] == [("0", 0.0, 5), ("1", 1.5, 6)]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"prompt_tokens": 0, "output_tokens": 1}', "prompt_tokens"),
        ('{"prompt_tokens": 1, "output_tokens": 1, "colour": 1}', "colour"),
        ('{"arrival": -1, "prompt_tokens": 1, "output_tokens": 1}', "arrival"),
        ('{"prompt_tokens": 4, "output_tokens": 1, "prefix": [["a", 3], ["b", 2]]}', "at most prompt_tokens"),
        ('{"prompt_tokens": 4, "output_tokens": 1, "prefix": "a"}', "prefix"),
        ('{"prompt_tokens": 4, "output_tokens": 1, "history": 1}', "history must be at most"),
        ('{"armillary_workload": 2, "users": "many"}', "users must be"),
        ('{"armillary_workload": 2, "slo_classes": {"a": "fast"}}', "service level must"),
        ('{"armillary_workload": 1}', "version 2"),
        ('{"prompt_tokens": 4, "output_tokens": 1, "token_ids": [1]}', "token_ids must hold"),
        ('{"armillary_workload": 9}', "version"),
        ("nonsense", "JSON"),
    ],
)
def test_a_bad_workload_is_refused(tmp_path, line: str, what: str) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ArmillaryError, match=what):
        Workload.read(path)


def test_conversations_repeat_what_was_said() -> None:
    spec = WorkloadSpec(
        requests=2000, rate=10.0, turns="geometric:4", prompt_length="uniform:5,20", output_length="uniform:1,9",
        prefixes=3, prefix_length=30, prefix_share=0.5, context_limit=150,
    )  # fmt: skip
    workload = synthesise(spec)
    said: dict[str | None, int] = {}
    lengths: Counter[str | None] = Counter()
    for item in workload.items:
        assert item.prompt_tokens + item.output_tokens <= 150
        assert item.history == said.get(item.session, 0)
        assert bool(item.prefix) <= (item.history == 0)
        said[item.session] = item.prompt_tokens + item.output_tokens
        lengths[item.session] += 1
    assert max(said.values()) > 130, "some conversation was ended by the context"
    assert len(workload) / workload.duration == pytest.approx(10.0, rel=0.1), (
        "the rate is one of requests, not conversations"
    )
    free = synthesise(spec.model_copy(update={"context_limit": None}))
    turns = Counter(item.session for item in free.items)
    assert np.mean(list(turns.values())) == pytest.approx(4.0, rel=0.12)


def test_classes_come_in_their_shares_and_whole_conversations() -> None:
    spec = WorkloadSpec(requests=N, rate=9.0, slo_classes="quick 3: ttft p95 300ms; slow 1: e2e p95 60s")
    workload = synthesise(spec)
    assert stats.binomtest(sum(item.slo_class == "quick" for item in workload.items), N, 0.75).pvalue > P
    assert {name: str(slo) for name, slo in workload.slo_classes.items()} == {
        "quick": "ttft p95 300ms", "slow": "e2e p95 60s",
    }  # fmt: skip
    for text in (
        "quick",
        "quick 1",
        "quick: ttft p95 1s",
        "quick 0: ttft p95 1s",
        "a 1: ttft p95 1s; a 1: ttft p95 1s",
    ):
        with pytest.raises(ArmillaryError, match="classes must"):
            synthesise(WorkloadSpec(slo_classes=text))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_drawn_and_may_be_changed(name: str) -> None:
    workload = workload_of(WorkloadSpec(workload=name, requests=50, seed=1))
    assert len(workload) == 50
    assert workload == workload_of(WorkloadSpec(workload=name, requests=50, seed=1))
    closed = workload_of(WorkloadSpec(workload=name, requests=20, users=2, output_length="7"))
    assert closed.users == 2
    assert {item.output_tokens for item in closed.items} == {7}
    assert workload_of(WorkloadSpec(workload=name, requests=5, prefixes=0, turns="1")).columns.run is None


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"prefixes": 2}, "both be above 0"),
        ({"prefix_zipf": 1.0}, "must come with prefixes"),
        ({"users": 2, "rate": 3.0}, "rate must be left out"),
        ({"arrivals": "gamma:2"}, "must come with a rate"),
        ({"think": 1.0}, "users or with turns"),
        ({"volume": 2.0}, "a file to replay"),
        ({"context_limit": 5, "prefixes": 1, "prefix_length": 4}, "must hold the prefix"),
        ({"workload": "nonsense"}, "one of chat, rag, agent, batch"),
        ({"workload": "none.jsonl"}, "preset or a readable file"),
    ],
)
def test_a_specification_that_contradicts_itself_is_refused(fields: dict[str, object], what: str) -> None:
    with pytest.raises(ArmillaryError, match=what):
        workload_of(WorkloadSpec(**fields))


def test_columns_read_like_items() -> None:
    workload = synthesise(WorkloadSpec(requests=30, rate=2.0, turns="3", prefixes=2, prefix_length=4, deadline=9.0))
    columns = workload.columns
    assert Columns.of(list(columns)) == columns
    assert columns[-1] == columns[29] == list(columns)[29]
    assert list(columns[3:9]) == list(columns)[3:9]
    with pytest.raises(IndexError):
        columns[30]
    rows = np.array([7, 0, 6])
    assert list(columns.take(rows)) == [columns[int(row)] for row in rows]
    for item in columns:
        assert WorkItem.model_validate(item.model_dump()) == item, "what is made without checks would pass them"


def test_a_million_requests_are_small() -> None:
    columns = synthesise(WorkloadSpec(requests=1_000_000, rate=10.0, prefixes=9, prefix_length=4)).columns
    held = sum(value.nbytes for value in vars(columns).values() if isinstance(value, np.ndarray))
    assert held <= 60 * len(columns)


def test_a_workload_keeps_its_own_rules() -> None:
    item = WorkItem(id="a", arrival=1.0, prompt_tokens=1, output_tokens=1)
    other = WorkItem(id="other", prompt_tokens=1, output_tokens=1)

    def talk(name: str) -> WorkItem:
        return WorkItem(id=name, prompt_tokens=1, output_tokens=1, session="s")

    for items, users in (
        ((), None),
        ((item, item), None),
        ((item, item.model_copy(update={"id": "b", "arrival": 0.5})), None),
        ((item.model_copy(update={"arrival": None}),), None),
        ((item,), 2),
        ((talk("a"), other, talk("b")), 2),
    ):
        with pytest.raises(ArmillaryError):
            Workload(items, users)
