"""Service levels: what the text means, and what a run reached of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.errors import ArmillaryError
from armillary.measure.outcomes import Outcomes
from armillary.measure.record import Outcome, RequestRecord
from armillary.measure.slo import Objective, Slo, judge


def record(index: int, ttft: float, gaps: list[float], ok: bool = True, slo_class: str | None = None) -> RequestRecord:
    return RequestRecord(
        id=str(index), due=float(index), sent=float(index), first=index + ttft, end=index + ttft + sum(gaps), gaps=gaps,
        outcome=Outcome.OK if ok else Outcome.SHED, output_tokens=len(gaps) + 1, slo_class=slo_class,
    )  # fmt: skip


def test_the_text_and_the_objectives_say_the_same() -> None:
    slo = Slo.parse(" TTFT p95 500ms,tpot p99.9 0.05 s , e2e p50 2min")
    assert slo.objectives == (
        Objective("ttft", 0.95, 0.5), Objective("tpot", 0.999, 0.05), Objective("e2e", 0.5, 120.0),
    )  # fmt: skip
    assert str(slo) == "ttft p95 500ms, tpot p99.9 50ms, e2e p50 120s"
    assert str(Slo()) == "none stated"


@given(
    st.lists(
        st.tuples(st.sampled_from(["ttft", "tpot", "itl", "e2e"]), st.integers(1, 999), st.integers(1, 10**7)),
        min_size=1, unique_by=lambda row: row[:2],
    )
)  # fmt: skip
def test_a_level_written_and_read_is_the_same_text(rows: list[tuple[str, int, int]]) -> None:
    text = ", ".join(f"{metric} p{tenths / 10:g} {us}us" for metric, tenths, us in rows)
    assert str(Slo.parse(str(Slo.parse(text)))) == str(Slo.parse(text))


@pytest.mark.parametrize(
    "text",
    ["", "ttft", "ttft 500ms", "ttft p95", "ttft p95 500", "ttft p0 1s", "ttft p100 1s", "ttft p95 0ms",
     "colour p95 1s", "ttft p95 -1s", "ttft p95 1s,", "ttft p95 1s, ttft p95 2s", "ttft p95 500ms; tpot p95 1s"],
)  # fmt: skip
def test_what_is_no_service_level_is_refused(text: str) -> None:
    with pytest.raises(ArmillaryError, match="a service level must") as refusal:
        Slo.parse(text)
    assert refusal.value.param == "slo"


def test_attainment_is_a_share_of_all_requests() -> None:
    run = Outcomes.of([record(i, 0.1 * (i + 1), [0.01] * 3) for i in range(9)] + [record(9, 0.0, [], ok=False)])
    (half,) = Slo.parse("ttft p50 500ms").attained(run)
    assert (half.value, half.share, half.met) == (pytest.approx(0.5), 0.5, True)
    (most,) = Slo.parse("ttft p90 899ms").attained(run)
    assert (most.value, most.share, most.met) == (pytest.approx(0.9), 0.8, False)
    (all_,) = Slo.parse("ttft p95 60s").attained(run)
    assert (all_.value, all_.share, all_.met) == (math.inf, 0.9, False), (
        "one in ten failed, so no 95th percentile exists"
    )


def test_itl_is_judged_on_gaps_and_tpot_on_requests() -> None:
    run = Outcomes.of([record(0, 0.1, [0.01] * 9 + [1.0]), record(1, 0.1, [0.01] * 90), record(2, 0.1, [])])
    slow = Slo.parse("itl p99 20ms")
    assert slow.attained(run)[0].share == pytest.approx(99 / 100)
    assert slow.met(run)
    assert slow.good(run).tolist() == [False, True, True], "one gap in ten is too long in the first request"
    assert Slo.parse("tpot p50 11ms").good(run).tolist() == [False, True, True]
    bare = Outcomes(**{**run.__dict__, "gaps": None, "gap_counts": None})
    with pytest.raises(ArmillaryError, match="kept its gaps"):
        slow.attained(bare)


def test_of_several_percentiles_the_highest_decides_who_was_good() -> None:
    run = Outcomes.of([record(0, 0.3, []), record(1, 0.1, [])])
    assert Slo.parse("ttft p99 500ms, ttft p50 200ms").good(run).tolist() == [True, True]


def test_classes_are_judged_by_levels_of_their_own() -> None:
    run = Outcomes.of([record(i, 1.0, [], slo_class=c) for i, c in enumerate(["quick", "slow", None, "unknown"])])
    classes = {"quick": "ttft p95 1ms", "slow": "ttft p95 5s", "absent": "ttft p95 5s"}
    found, good = judge(run, Slo.parse("ttft p95 2s"), {name: Slo.parse(text) for name, text in classes.items()})
    assert good.tolist() == [False, True, True, True]
    assert {name: [a.met for a in figures] for name, figures in found.items()} == {
        "quick": [False], "slow": [True], "": [True],
    }  # fmt: skip
    assert run.of_class("slow").due.tolist() == [1.0]
    assert len(run.of_class("absent")) == 0


def test_selecting_rows_keeps_their_gaps() -> None:
    run = Outcomes.of([record(i, 0.1, [float(i + 1)] * i) for i in range(5)])
    kept = run.select(np.array([False, True, False, True, False]))
    assert kept.gaps is not None
    assert kept.gaps.tolist() == [2.0, 4.0, 4.0, 4.0]
    assert kept.gap_rows().tolist() == [0, 1, 1, 1]
