"""Workloads: what is drawn follows the specification, and the JSONL format loses nothing."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from armillary.errors import ArmillaryError
from armillary.measure.arrivals import gaps
from armillary.measure.lengths import Fixed, Lognormal, Uniform, parse_lengths
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.measure.workload import WorkItem, Workload

N = 20_000
P = 1e-3  # seeds are fixed, so a test that passes keeps passing


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_poisson_gaps_are_exponential() -> None:
    drawn = gaps("poisson", rate=4.0, cv=1.0, count=N, rng=rng())
    assert stats.kstest(drawn, stats.expon(scale=0.25).cdf).pvalue > P
    # The number of arrivals in a second is then Poisson: its variance equals its mean.
    counts = np.bincount(np.cumsum(drawn).astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_gamma_gaps_have_the_stated_rate_and_variation(cv: float) -> None:
    drawn = gaps("gamma", rate=2.0, cv=cv, count=N, rng=rng())
    assert stats.kstest(drawn, stats.gamma(1 / cv**2, scale=0.5 * cv**2).cdf).pvalue > P
    assert drawn.mean() == pytest.approx(0.5, rel=0.06)
    assert drawn.std() / drawn.mean() == pytest.approx(cv, rel=0.06)


def test_the_distribution_tests_can_fail() -> None:
    drawn = gaps("gamma", rate=2.0, cv=1.15, count=N, rng=rng())
    assert stats.kstest(drawn, stats.expon(scale=0.5).cdf).pvalue < P


def test_constant_and_infinite_rates() -> None:
    assert gaps("constant", 4.0, 1.0, 3, rng()).tolist() == [0.25] * 3
    assert gaps("poisson", float("inf"), 1.0, 3, rng()).tolist() == [0.0] * 3


def test_uniform_lengths_cover_both_ends_evenly() -> None:
    drawn = Uniform(3, 12).draw(N, rng())
    assert stats.chisquare([Counter(drawn.tolist())[n] for n in range(3, 13)]).pvalue > P
    assert set(drawn.tolist()) == set(range(3, 13))


def test_lognormal_lengths_follow_mean_and_variation() -> None:
    wanted = Lognormal(400, 0.8)
    drawn = wanted.draw(N, rng())
    edges = np.array([0, 100, 200, 300, 400, 600, 900, 1500, np.inf])
    cdf = stats.lognorm(wanted.sigma, scale=np.exp(wanted.mu)).cdf
    # Rounding puts everything below n + 0.5 at n or below.
    expected = np.diff([cdf(e + 0.5) if 0 < e < np.inf else float(e > 0) for e in edges]) * N
    observed = [int(((drawn > low) & (drawn <= high)).sum()) for low, high in zip(edges, edges[1:], strict=False)]
    assert stats.chisquare(observed, expected).pvalue > P
    assert drawn.mean() == pytest.approx(400, rel=0.03)
    assert drawn.std() / drawn.mean() == pytest.approx(0.8, rel=0.06)
    assert Lognormal(400, 0.8, limit=500).draw(N, rng()).max() == 500


def test_parsing_lengths() -> None:
    assert parse_lengths("7", "prompt_tokens") == Fixed(7) == parse_lengths(7, "prompt_tokens")
    assert parse_lengths("fixed:7", "prompt_tokens") == Fixed(7)
    assert parse_lengths("uniform:2,5", "prompt_tokens") == Uniform(2, 5)
    assert parse_lengths("lognormal:200,1.5,1024", "output_tokens") == Lognormal(200, 1.5, 1024)


@pytest.mark.parametrize(
    "text",
    ["", "0", "-3", "uniform:5,2", "uniform:5", "lognormal:10", "lognormal:0,1", "lognormal:5,nan", "fixed:1.5",
     "zipf:3", "lognormal:5,1,0.5"],
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
    carrying = [item for item in items if item.prefix is not None]
    assert stats.binomtest(len(carrying), N, 0.6).pvalue > P
    weights = np.array([1 / k**1.1 for k in range(1, 9)])
    counts = Counter(item.prefix for item in carrying)
    expected = weights / weights.sum() * len(carrying)
    assert stats.chisquare([counts[f"p{k}"] for k in range(8)], expected).pvalue > P
    assert {item.prompt_tokens for item in carrying} == {80}
    assert {item.prompt_tokens for item in items if item.prefix is None} == {16}


def test_equal_seeds_give_equal_workloads_and_streams_are_apart() -> None:
    spec = WorkloadSpec(requests=50, rate=3.0, prompt_length="uniform:1,99", output_length="lognormal:20,1", seed=5)
    assert synthesise(spec) == synthesise(spec)
    other = synthesise(spec.model_copy(update={"rate": 6.0, "arrivals": "gamma", "cv": 2.0}))
    assert [i.prompt_tokens for i in other.items] == [i.prompt_tokens for i in synthesise(spec).items]
    assert synthesise(spec.model_copy(update={"seed": 6})) != synthesise(spec)


def test_a_closed_loop_has_users_and_think_times_and_no_arrivals() -> None:
    workload = synthesise(WorkloadSpec(requests=N, users=4, think=2.0))
    assert workload.users == 4
    assert all(item.arrival is None for item in workload.items)
    assert stats.kstest([item.think for item in workload.items], stats.expon(scale=2.0).cdf).pvalue > P


def test_writing_and_reading_give_the_same_workload(tmp_path) -> None:
    path = tmp_path / "deep" / "w.jsonl"
    spec = WorkloadSpec(
        requests=40, rate=5.0, prompt_length="uniform:2,9", prefixes=2, prefix_length=5, prefix_share=0.5, deadline=3.0
    )
    for workload in (synthesise(spec), synthesise(spec.model_copy(update={"users": 3, "think": 0.5}))):
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
        ('{"prompt_tokens": 4, "output_tokens": 1, "prefix": "a", "prefix_tokens": 5}', "at most prompt_tokens"),
        ('{"prompt_tokens": 4, "output_tokens": 1, "prefix": "a"}', "given together"),
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


def test_a_workload_keeps_its_own_rules() -> None:
    item = WorkItem(id="a", arrival=1.0, prompt_tokens=1, output_tokens=1)
    for items, users in (
        ((), None),
        ((item, item), None),
        ((item, item.model_copy(update={"id": "b", "arrival": 0.5})), None),
        ((item.model_copy(update={"arrival": None}),), None),
        ((item,), 2),
    ):
        with pytest.raises(ArmillaryError):
            Workload(items, users)
