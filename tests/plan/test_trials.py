"""Simulations that a search rests on: long enough that what cannot be served for long is seen."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from armillary.deployment import Deployment
from armillary.errors import ArmillaryError
from armillary.measure.intervals import Interval
from armillary.measure.laws import Law
from armillary.measure.outcomes import Outcomes
from armillary.measure.slo import Slo
from armillary.measure.synthesis import WorkloadSpec
from armillary.measure.workload import WorkItem, Workload
from armillary.plan import trials as trials_module
from armillary.plan.designs import Design, space
from armillary.plan.load_test import METRICS
from armillary.plan.planner import answer
from armillary.plan.question import Question
from armillary.plan.trials import Trials, kept_up
from armillary.plan.verdict import check_said, laws_held


def fast(workload: WorkloadSpec = WorkloadSpec()) -> tuple[Trials, Design]:
    """A small model on a machine that answers hundreds of requests within the limit, were they to come at once."""
    question = Question(Deployment(), "h100", workload, Slo.parse("ttft p95 1s"), vary=False)
    trials = Trials(question)
    designs = space(question)
    return trials, max(designs, key=lambda design: (-design.devices, design.max_running, design.max_step_tokens))


def test_what_is_served_at_once_is_not_taken_for_served_for_long() -> None:
    trials, design = fast()
    capacity = trials.expected(design)
    assert trials(design, 0.5 * capacity, 0)
    assert not trials(design, 2 * capacity, 0)


@pytest.mark.parametrize("always", [False, True])
def test_more_under_way_by_chance_are_looked_at_for_longer(always: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A miss by chance at a rate below the knee would be one at all rates above it."""
    trials, design = fast()
    rate = 0.5 * trials.expected(design)
    seen: list[int] = []

    def judge(run: Outcomes) -> Any:
        seen.append(len(run))
        return SimpleNamespace(verdict="unstable" if always or min(seen) == len(run) else "steady")

    monkeypatch.setattr(trials_module, "steadiness", judge)
    assert trials(design, rate, 0) == trials.meets(design, rate, 0) == trials.replicate(design, rate, 0).met != always
    assert max(seen) > 1.8 * min(seen)


@pytest.mark.parametrize(("load", "keeps"), [(0.7, 20), (0.9, 18), (1.15, 0), (1.3, 0)])
def test_a_queue_that_has_no_time_to_outgrow_a_limit_is_seen_to_grow(load: float, keeps: int) -> None:
    """Six hundred requests in about a second, which all begin within 0.3 s: what is more than can be served is seen."""
    kept = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        due = np.cumsum(rng.exponential(1 / 600, 600))
        first = np.empty_like(due)
        free = 0.0
        for row, work in enumerate(rng.exponential(load / 600, 600)):
            free = first[row] = max(free, due[row]) + work
        whole = np.full(600, 100)
        run = Outcomes(due, first, first + 0.3, whole, whole, whole, np.ones(600, dtype=np.bool_))
        assert (run.ttft < 0.45).all()
        kept += kept_up(run)
    assert kept >= keeps if keeps else kept <= 2


def test_too_few_recorded_requests_are_refused(tmp_path: Path) -> None:
    items = [WorkItem(id=str(n), arrival=0.1 * n, prompt_tokens=50, output_tokens=9) for n in range(30)]
    Workload(items).write(tmp_path / "short.jsonl")
    trials, _ = fast(WorkloadSpec(workload=str(tmp_path / "short.jsonl")))
    with pytest.raises(ArmillaryError, match=r"workload must hold at least \d+ requests, .* given \d+"):
        answer(trials.question)


@pytest.mark.parametrize("workload", [None, "chat"])
def test_every_replication_of_a_plan_is_held_against_the_laws(workload: str | None) -> None:
    trials, design = fast(WorkloadSpec(workload=workload))
    one = trials.replicate(design, 0.2 * trials.expected(design), 0)
    assert [law.name for law in one.audit.laws] == ["little", "utilisation", "forced flow", "bottleneck"]
    assert all(law.holds(1e-6) for law in one.audit.laws), [str(law) for law in one.audit.laws]


def test_a_law_that_was_not_checked_is_not_said_to_hold() -> None:
    held, broken = (Law(name, 1.0, other, "") for name, other in (("little", 1.0), ("utilisation", 2.0)))
    audits = [SimpleNamespace(audit=SimpleNamespace(laws=laws)) for laws in ((held, broken), (held,), ())]
    answer: Any = SimpleNamespace(found=SimpleNamespace(replications=audits))
    told = "Operational laws: Little's hold in 2 of 2; utilisation hold in 0 of 1; forced flow, bottleneck not checked."
    assert laws_held(answer) == told


def test_a_load_test_that_is_over_sooner_says_so() -> None:
    trials, _ = fast()
    answer: Any = SimpleNamespace(
        spec=trials.question.spec,
        question=trials.question,
        tested_rate=5000.0,
        seen=None,
        recorded=None,
        found=SimpleNamespace(figures={name: Interval(1.0, 0.5, 2.0) for name in METRICS}, replications=[None] * 8),
    )
    told = check_said(answer, "plan.json")
    assert "--rate 5000 --requests 50000" in told and "no more than 50,000 requests and so is over after 10 s" in told
    answer.recorded = 700  # of a file that holds no more
    short = check_said(answer, "plan.json")
    assert "--requests 700" in short and "no more than 700 requests and so is over after 140 ms" in short
    answer.recorded, answer.tested_rate = None, 20.0
    assert "--requests 3600" in check_said(answer, "plan.json") and "is over" not in check_said(answer, "plan.json")
