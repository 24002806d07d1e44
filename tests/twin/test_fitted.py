"""Designs, hulls, fits and profiles, against machines whose true costs are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from armillary.core.journal import Journal
from armillary.core.request import FinishReason, Request, Sequence
from armillary.core.step import Entry, Event, Step
from armillary.errors import ArmillaryError
from armillary.measure.record import Outcome, RequestRecord
from armillary.runtime.machine import read_machine
from armillary.twin import here
from armillary.twin.cost import IdealCost
from armillary.twin.entering import NEAR_S
from armillary.twin.fit import BESIDE, CONTEXT, Knee, Sum, fit_designed, fit_loaded
from armillary.twin.fitted import FittedCost
from armillary.twin.hull import Hull
from armillary.twin.points import Limits, candidates, corners, ordered
from armillary.twin.profile import Lived, Profile, Timed, shipped_profile, stored_path, stored_profiles
from armillary.twin.residuals import residual_svg
from armillary.twin.served import AT_WORK_S, JournalStep, Run, journal_cost, journal_steps, shared, waited
from armillary.twin.work import COUNTED, StepWork, work_of

LIMITS = Limits(sequences=64, step_tokens=512, context=4096, blocks=8192, block_size=16)
TRUE = Sum((3e-4, 0.0, 9e-5, 2e-5, 2e-7, 8e-8, 0.0, 0.0, 0.0, 0.0))


def designed(count: int = 96) -> np.ndarray[Any, Any]:
    """The work of designed steps, [count, COUNTED]."""
    points = candidates(LIMITS)
    work = np.array([point.work[:COUNTED] for point in points], dtype=np.float64)
    features = np.column_stack([np.ones(len(work)), work[:, :5]]) / TRUE.over(work)[:, None]
    return work[ordered(points, features, len(corners(LIMITS)))[:count]]


def profile(true: Sum = TRUE, noise: float = 0.02, lived: bool = True) -> Profile:
    """What a machine with known costs would have been measured at."""
    rng = np.random.default_rng(0)
    work = designed()
    seconds = true.over(work)
    steps = [
        Timed(
            work=tuple(int(v) for v in row[:5]),  # type: ignore[arg-type]
            seconds=(s * (1 + noise * rng.random(8))).tolist(),
        )
        for row, s in zip(work, seconds, strict=True)
    ]
    found = Profile(
        begun="2026-01-01 00:00:00",
        model={"name": "known", "digest": "0"},
        machine={"cpu": "known", "memory": 2**34},
        software={},
        engine={"dtype": "bfloat16", "kv_dtype": "bfloat16", "block_bytes": 40960, "threads": 2},
        bandwidth=(1e10, 1e10),
        peaks={"float32": 1e11},
        steps=steps,
    )
    if lived:
        for _ in range(400):
            sequences = int(rng.integers(1, 65))
            context = sequences * int(rng.integers(10, 500))
            step = StepWork(sequences, sequences, sequences, context, context)
            under_load = 1.5 * true.of(step) + 1e-4 + 3e-6 * sequences
            found.lived.add(step, under_load * (1 + noise * rng.standard_normal()), 5e-5 + 4e-6 * sequences)
        found.done = ["machine", "steps", "engine"]
    return found


def test_a_fit_finds_the_costs_that_there_are() -> None:
    work = designed()
    fit = fit_designed(work, TRUE.over(work))
    assert fit.sum.parts == pytest.approx(TRUE.parts, rel=1e-6, abs=1e-9) and fit.sum.knees == ()
    assert fit.error[1] < 1e-6


def test_a_disturbance_of_a_few_steps_moves_the_fit_little() -> None:
    work = designed()
    seconds = TRUE.over(work)
    seconds[::12] *= 5
    fit = fit_designed(work, seconds)
    assert np.median(np.abs(fit.sum.over(work) / TRUE.over(work) - 1)) < 0.05


def test_a_knee_joins_only_where_steps_left_out_ask_for_it() -> None:
    work = designed()
    rng = np.random.default_rng(1)
    noisy = 1 + 0.03 * rng.standard_normal(len(work))
    assert fit_designed(work, TRUE.over(work) * noisy).sum.knees == ()
    bent = Sum(TRUE.parts, ((Knee(1, 8), 4e-4),))  # weights read once for up to eight positions
    fit = fit_designed(work, bent.over(work) * noisy)
    assert Knee(1, 8) in dict(fit.sum.knees)
    assert np.median(np.abs(fit.errors)) < 0.7 * np.median(np.abs(fit.plain))


def test_multiplying_may_take_over_from_reading() -> None:
    """Up to sixteen positions a step takes as long as reading the weights, then each position costs."""
    work = designed()
    true = Sum((2e-2, 0.0, 1e-6, 0.0, 2e-7, 0.0, 0.0, 0.0, 0.0, 0.0), ((Knee(1, 16, beyond=True), 2e-3),))
    fit = fit_designed(work, true.over(work) * (1 + 0.03 * np.random.default_rng(1).standard_normal(len(work))))
    assert any(knee.beyond and knee.limit in (8, 16, 32) for knee, _ in fit.sum.knees)
    assert np.median(np.abs(fit.errors)) < 0.05 < np.median(np.abs(fit.plain))
    assert [knee.name for knee, _ in true.knees] == ["token, beyond 16"]


def test_the_context_of_many_sequences_may_cost_more() -> None:
    """That of up to sixteen fits a cache; each position of the others is read from memory."""
    work = designed()
    true = Sum(TRUE.parts, ((Knee(CONTEXT, 16, beyond=True), 2e-6),))
    fit = fit_designed(work, true.over(work) * (1 + 0.03 * np.random.default_rng(1).standard_normal(len(work))))
    assert any(knee.column == CONTEXT and knee.limit in (8, 16, 32) for knee, _ in fit.sum.knees)
    assert np.median(np.abs(fit.errors)) < 0.7 * np.median(np.abs(fit.plain))
    assert [knee.name for knee, _ in true.knees] == ["context, beyond 16 sequences"]
    few, many = StepWork(16, 16, 16, 6400, 6400), StepWork(64, 64, 64, 25600, 25600)
    assert true.of(few) == TRUE.of(few) and true.of(many) == pytest.approx(TRUE.of(many) + 2e-6 * 48 * 400)


def test_prompts_may_cost_more_beside_other_sequences() -> None:
    """Each of their positions, for each of up to sixteen others."""
    work = designed()
    true = Sum(TRUE.parts, ((Knee(BESIDE, 16), 2e-5),))
    fit = fit_designed(work, true.over(work) * (1 + 0.03 * np.random.default_rng(1).standard_normal(len(work))))
    assert any(knee.column == BESIDE and knee.limit in (8, 16, 32) for knee, _ in fit.sum.knees)
    assert np.median(np.abs(fit.errors)) < 0.7 * np.median(np.abs(fit.plain))
    assert [knee.name for knee, _ in true.knees] == ["prompt token, beside each of the first 16 sequences"]
    alone, beside, tokens = (
        StepWork(1, 64, 1, 64, 2080),
        StepWork(33, 96, 33, 660, 3000),
        StepWork(33, 33, 33, 660, 660),
    )
    assert [true.of(step) - TRUE.of(step) for step in (alone, tokens)] == [0.0, 0.0]
    assert true.of(beside) - TRUE.of(beside) == pytest.approx(2e-5 * 63 * 16)


def test_load_scales_and_adds() -> None:
    cost = FittedCost(profile(), "engine")
    step = StepWork(10, 10, 10, 2000, 2000)
    assert cost.step_s(step) == pytest.approx(1.5 * TRUE.of(step) + 1e-4 + 3e-5, rel=0.03)
    assert cost.between_s(step) == pytest.approx(9e-5, rel=0.03)
    assert cost.request_s(100) == 0.0
    assert cost.error is not None and 0 < cost.error[0] < 0.05
    assert cost.step_s(step._replace(copies=2)) - cost.step_s(step) == pytest.approx(2 * 2 * 40960 / 1e10)


def test_what_a_server_does_for_requests_costs_what_it_did_under_load() -> None:
    found, rng = profile(lived=False), np.random.default_rng(5)
    for _ in range(900):
        sequences, read, ended = int(rng.integers(1, 33)), int(rng.integers(0, 3)), int(rng.integers(0, 2))
        near, tokens = float(rng.choice([0.0, rng.uniform()])), read * int(rng.integers(1, 1000))
        step = StepWork(sequences, sequences, sequences, 200 * sequences, 200 * sequences, near, read, tokens, ended)
        seconds = TRUE.of(step) + 2e-3 * near + 1e-3 * read + 1e-6 * tokens + 4e-4 * ended
        found.served.add(step, seconds, 1e-4 + 1e-3 * near + 1e-4 * read)
    found.requests = [(tokens, 3e-3 + 1e-6 * tokens, 4e-4 + 1e-4 * (tokens % 3 - 1)) for tokens in range(1, 400)]
    found.served = found.served.averaged(600)
    cost = FittedCost(found, "server")
    step = StepWork(8, 8, 8, 1600, 1600)

    def more(**served: float) -> tuple[float, float]:
        other = step._replace(**served)
        return cost.step_s(other) - cost.step_s(step), cost.between_s(other) - cost.between_s(step)

    assert more(near=1.0) == pytest.approx((2e-3, 1e-3), rel=0.05)
    assert more(read=2, read_tokens=500) == pytest.approx((2.5e-3, 2e-4), rel=0.05)
    assert more(ended=1) == pytest.approx((4e-4, 0.0), rel=0.05, abs=1e-6)
    assert cost.held_s(500) == pytest.approx(sum(more(read=1, read_tokens=500)), rel=1e-6), "what it adds to a step"
    assert cost.held_s(10**6) <= cost.request_s(10**6), "no more than the request takes"
    assert cost.first_s == pytest.approx(4e-4, rel=0.1)
    assert cost.request_s(100) + cost.first_s == pytest.approx(3.1e-3), "what a client waits for its first token"
    engine = FittedCost(profile(), "engine")
    assert engine.held_s(500) == engine.first_s == 0.0


def test_the_time_near_a_request_is_taken_from_the_steps_that_follow() -> None:
    def step(number: int, seconds: float, admitted: int) -> JournalStep:
        return JournalStep(
            number, number, number + seconds, StepWork(number + 1, 1, 1, 9, 9, admitted=admitted), (), ()
        )

    cost = IdealCost(0.0, NEAR_S)  # alone, as many times what is near as there are sequences
    steps = [step(0, 9.0, 0), step(1, 0.1, 2), step(2, 5.0, 0), step(3, 0.1, 1), step(4, 0.1, 0)]
    found = shared(steps, cost)
    assert [work.near for work in found] == pytest.approx([0, 2 / 3, 1 / 4, 4 / 5, 1 / 6]), "together one time"
    others = zip(steps[1::2], ("answered", "ended"), strict=True)
    told = [replace(each, work=each.work._replace(admitted=0, **{what: 1})) for each, what in others]
    assert [work.near for work in shared(told, cost)] == pytest.approx([2 / 3, 4 / 5]), "first tokens and ends as well"
    assert shared([step(0, 9.0, 1)] + [step(30, 1.0, 0)] * 2, cost)[-1].near == 0.0, "little is not left"


def test_what_a_client_of_an_idle_engine_waited_is_paired_with_what_the_steps_took() -> None:
    """Others meet an engine at work, come before or after, or are not the request that the engine had; and of one run
    the server refused a request."""

    def record(sent: float, ttft: float | None, tokens: int) -> RequestRecord:
        """A client that has its last token a second and a sixteenth after its first."""
        first = None if ttft is None else sent + ttft
        end = None if first is None else first + 1.0625
        return RequestRecord("", due=sent, sent=sent, first=first, end=end, outcome=Outcome.OK, prompt_tokens=tokens)

    submitted = {f"r{at}": (float(at), 10 * at) for at in range(1, 10)} | {"late": (9.3, 95)}
    alone, beside = StepWork(1, 1, 1, 1, 1, admitted=1), StepWork(2, 2, 2, 2, 2, admitted=1)
    steps = [JournalStep(at, at + 0.125, at + 0.25, alone, (f"r{at}",), (f"r{at - 1}",)) for at in range(1, 10)]
    steps.append(JournalStep(10, 9.5, 9.75, beside, ("late",), ("r9",)))
    runs = [
        Run(1.5, 3.5, [record(1.0, 0.5, 30), record(0.0, 0.25, 20)]),  # of r2 and r3
        Run(4.5, 6.5, [record(0.0, 0.5, 50), record(0.5, None, 0), record(1.0, 0.5, 60)]),
        Run(6.5, 8.5, [record(0.0, 0.5, 70), record(1.0, 0.0625, 80)]),  # no answer comes before the engine has it
        Run(8.75, 9.75, [record(0.0, 0.5, 91), record(0.25, 0.5, 95)]),  # not of r9
    ]
    assert waited(runs, steps, submitted) == [(20, 0.125, -0.0625), (30, 0.375, -0.0625), (70, 0.375, -0.0625)]
    with pytest.raises(ArmillaryError, match="in none of 1 runs; run `armillary profile` again"):
        waited(runs[1:2], steps, submitted)


def test_a_profile_of_another_version_is_left_out_and_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    old = stored_path(profile())
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps(json.loads(profile().model_dump_json()) | {"armillary_profile": 5}))
    assert stored_profiles() == []
    assert "it is of version 5, and this reads 8; run `armillary profile` again" in caplog.text


def test_the_level_is_that_of_the_mean() -> None:
    """Where one step in ten takes three times as long, a client waits for the mean, not for the median."""
    work = np.array([[s, s, s, 50 * s, 50 * s, 0, 0, 0, 0] for s in range(1, 65)] * 10, dtype=np.float64)
    seconds = TRUE.over(work)
    seconds[::10] *= 3
    fit = fit_loaded(work, seconds, np.ones(len(work)), TRUE)
    assert np.mean(seconds / fit.sum.over(work)) == pytest.approx(1.0, abs=0.03)


@settings(max_examples=30)
@given(st.integers(1, 63), st.integers(0, 400), st.integers(1, 4000))
def test_predictions_grow_with_the_work(sequences: int, more: int, context: int) -> None:
    cost = known_cost()
    step = StepWork(sequences, sequences + more, sequences, context + more, context + more * more // 2)
    larger = StepWork(sequences + 1, sequences + more + 1, sequences + 1, context + more + 9, step.pairs + 9)
    assert 0 < cost.step_s(step) <= cost.step_s(larger)
    assert 0 < cost.between_s(step) <= cost.between_s(larger)
    assert cost.step_s(step) == pytest.approx(cost.loaded.sum.of(step))  # what simulations ask is what was fitted


BENT = ((Knee(1, 8), 4e-4), (Knee(CONTEXT, 16, beyond=True), 1e-6), (Knee(BESIDE, 16), 2e-5))
_KNOWN: list[FittedCost] = []


def known_cost() -> FittedCost:
    """One cost model for many examples."""
    if not _KNOWN:
        _KNOWN.append(FittedCost(profile(Sum(TRUE.parts, BENT)), "engine"))
    return _KNOWN[0]


def test_a_design_reaches_the_corners_and_any_first_part_of_it_is_one() -> None:
    points = candidates(LIMITS)
    assert all(LIMITS.allow(point) for point in points) and len(points) == 400
    work = designed(400)
    half = work[:40]
    for column in range(5):
        everything = np.log1p(work[:, column])
        reached = np.ptp(np.log1p(half[:, column])) / np.ptp(everything)
        assert reached > 0.9, column
    features = np.column_stack([np.ones(len(work)), work[:, :5]]) / TRUE.over(work)[:, None]

    def information(rows: np.ndarray[Any, Any]) -> float:
        return float(np.linalg.slogdet(rows.T @ rows)[1])

    rng = np.random.default_rng(0)
    drawn = [information(features[rng.permutation(len(features))[:40]]) for _ in range(50)]
    assert information(features[:40]) > max(drawn)


def test_small_limits_have_designs_too() -> None:
    tight = Limits(sequences=1, step_tokens=8, context=16, blocks=2, block_size=8)
    points = candidates(tight, 30)
    assert points and all(tight.allow(point) for point in points)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.floats(0.001, 1), min_size=3, max_size=6), st.randoms(use_true_random=False))
def test_the_hull_contains_the_convex_hull_in_logarithms(weights: list[float], rng: Any) -> None:
    rows = designed(40)[:, :5]
    chosen = rows[[rng.randrange(len(rows)) for _ in weights]]
    shares = np.array(weights) / sum(weights)
    hull = Hull([tuple(int(v) for v in row[:5]) for row in rows])
    mixed = np.exp(shares @ np.log(np.maximum(chosen, 1e-9)))
    inside = linprog(
        np.zeros(len(rows)),
        A_eq=np.vstack([np.log(np.maximum(rows, 1e-9)).T, np.ones(len(rows))]),
        b_eq=np.append(np.log(np.maximum(mixed, 1e-9)), 1.0),
    )
    assert inside.status == 0  # the oracle agrees that a mixture lies inside
    assert hull.holds(StepWork(*mixed[:5].tolist()))


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (StepWork(65 * 2, 130, 130, 1300, 1300), "sequences must be from 1 to 6"),
        (StepWork(1, 1, 1, 9000, 9000), "context per sequences"),
        (StepWork(2, 2000, 2, 2000, 10**6), "tokens must be from 1 to 512"),
    ],
)
def test_outside_is_flagged_or_refused_with_the_limit(step: StepWork, why: str) -> None:
    cost = known_cost()
    assert not cost.inside(step)
    with pytest.raises(ArmillaryError, match=why):
        cost.refuse_outside(step)
    cost.refuse_outside(StepWork(8, 8, 8, 800, 800))
    assert cost.inside(StepWork(8, 8, 8, 800, 800))


def test_a_profile_is_kept_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from armillary.twin.profile import stored_path, stored_profiles

    found = profile()
    found.save(stored_path(found))
    assert stored_profiles("0") == []  # not finished
    found.finished = "2026-01-01 00:01:00"
    found.save(stored_path(found))
    assert stored_profiles("0") == [found] and stored_profiles("1") == []
    (tmp_path / "armillary/profiles/broken.json").write_text("{")
    assert stored_profiles("0") == [found]
    with pytest.raises(ArmillaryError, match="profile must be a file that"):
        Profile.load(tmp_path / "armillary/profiles/broken.json")


def test_what_is_not_measured_is_refused_with_the_remedy() -> None:
    short = profile()
    short.steps = short.steps[:5]
    with pytest.raises(ArmillaryError, match="at least 12 measured steps, given 5; run `armillary profile` again"):
        FittedCost(short)
    with pytest.raises(ArmillaryError, match="steps of the server under load"):
        FittedCost(profile(), "server")
    with pytest.raises(ArmillaryError, match="no profile of this model; run `armillary profile"):
        here.profile_for({"model_type": "none of this machine"})


def test_like_steps_are_kept_as_their_mean_and_nothing_is_dropped() -> None:
    rng = np.random.default_rng(3)
    lived = Lived()
    for index in range(5000):
        sequences, more = int(rng.integers(1, 65)), int(rng.choice([0, 0, 0, 100]))
        step = StepWork(sequences, sequences + more, sequences, 300 * sequences, 500 * sequences)
        lived.add(step, float(rng.exponential(1e-3 * sequences)) + 1e-8, 1e-4 if index % 2 else None)
    few = lived.averaged(60)
    assert len(few.work) <= 60 and sum(few.count) == 5000 == len(lived.count)
    assert np.dot(few.step_s, few.count) == pytest.approx(sum(lived.step_s), rel=1e-3)
    assert np.dot([w[0] for w in few.work], few.count) == pytest.approx(sum(w[0] for w in lived.work), rel=1e-3)
    assert all(gap == pytest.approx(1e-4) for gap in few.between_s)
    single = [i for i, work in enumerate(few.work) if work[:2] == (1.0, 1.0)]
    assert len(single) == 1


def test_a_mean_of_many_counts_for_more_than_a_single_step() -> None:
    work = np.array([[s, s, s, 50 * s, 50 * s, 0, 0, 0, 0] for s in range(1, 41)] * 2, dtype=np.float64)
    seconds = TRUE.over(work)
    seconds[40:] *= 3  # seen once each, on a bad day
    count = np.array([200.0] * 40 + [1.0] * 40)
    assert np.median(fit_loaded(work, seconds, count, TRUE).sum.over(work) / TRUE.over(work)) < 1.1
    assert np.median(fit_loaded(work, seconds, np.ones(80), TRUE).sum.over(work) / TRUE.over(work)) > 1.5


def test_the_plot_shows_every_designed_step() -> None:
    picture = residual_svg(known_cost())
    assert picture.count("<circle") == 96 + 3 and picture.startswith("<svg") and "nan" not in picture


def test_a_journal_tells_the_work_of_its_steps() -> None:
    lines: list[str] = []
    journal = Journal(lines.append)
    request = Request("r", tuple(range(40)), 4)
    sequence = Sequence(request, 0, 0, 0.0)
    journal.submitted(request, 1.0)
    chunk, rest = Step(0, [Entry(sequence, 0, 32, 0)], tokens=32), Step(1, [Entry(sequence, 32, 8, 1)], tokens=8)
    journal.stepped(chunk, 1.0, 1.5, 9, [], None)
    journal.stepped(rest, 1.75, 2.0, 9, [Event("r", 0, 7)], None)
    journal.stepped(rest, 2.0, 2.5, 9, [], "failed")
    steps, submitted = journal_steps([*lines, '{"step": 3, "cut o'])
    assert [step.work for step in steps] == [work_of(chunk), work_of(rest)]
    assert [step.first for step in steps] == [(), ("r",)] and submitted == {"r": (1.0, 40)}
    assert [step.ended - step.started for step in steps] == [0.5, 0.25]
    assert 0 < journal_cost(1) < 0.1


def test_a_journal_tells_which_steps_a_server_kept_waiting() -> None:
    lines: list[str] = []
    journal = Journal(lines.append)
    first, second, third = (Request(name, (1, 2, 3), 1) for name in "abc")
    step = Step(0, [Entry(Sequence(first, 0, 0, 0.0), 0, 3, 1)], tokens=3)
    journal.submitted(first, 1.0)  # nothing ran
    journal.stepped(step, 1.0, 2.0, 9, [Event("a", 0, 7, FinishReason.LENGTH)], None)
    journal.submitted(second, 2.0 + AT_WORK_S / 2)  # read while that step ran
    journal.stepped(step, 2.1, 2.2, 9, [], None)
    journal.submitted(third, 2.2 + 2 * AT_WORK_S)  # the engine waited for it
    journal.stepped(step, 2.3, 2.4, 9, [], None)
    works = [step.work for step in journal_steps(lines)[0]]
    assert [(work.read, work.read_tokens, work.ended) for work in works] == [(1, 3, 0), (0, 0, 1), (0, 0, 0)]


def test_a_profile_is_json_without_surprises() -> None:
    found = json.loads(profile().model_dump_json())
    assert found["armillary_profile"] == 8
    with pytest.raises(ValueError, match="surprise"):
        Profile.model_validate({**found, "surprise": 1})


def test_a_profile_of_another_machine_is_not_taken_for_this_ones(monkeypatch):
    machine = replace(read_machine(), cpu="Some CPU", features=("one",), physical_cores=3)
    monkeypatch.setattr("armillary.runtime.machine.read_machine", lambda: machine)
    own = {"cpu": "Some CPU", "features": ["one"], "physical_cores": 3}
    one = shipped_profile()
    assert here.measured_on(one.model_copy(update={"machine": own})) == "this machine"
    for name, other in (("cpu", "Other CPU"), ("features", ["one", "two"]), ("physical_cores", 4)):
        found = here.measured_on(one.model_copy(update={"machine": {**own, name: other}}))
        assert found.startswith("another machine") and "armillary profile" in found
