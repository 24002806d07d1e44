"""What the comparison with a real server takes from bursts beside its runs, and what it calls a knee's interval."""

from __future__ import annotations

import pytest
from claims.levels import AtLevel, Level, levels_between
from claims.real_server import Comparison, Found

from armillary.twin.cost import IdealCost
from armillary.twin.served import JournalStep
from armillary.twin.work import StepWork

COST = IdealCost(0.01, 0.001, between=0.002)
TOKENS = StepWork(4, 4, 4, 400, 400)
PROMPT = StepWork(1, 64, 1, 64, 2080)


def burst(begin: float, tokens: float, prompts: float) -> list[JournalStep]:
    """Eight steps of either kind, which take so many times as long as predicted."""
    steps: list[JournalStep] = []
    at = begin
    for _ in range(8):
        for work, factor in ((TOKENS, tokens), (PROMPT, prompts)):
            seconds = factor * COST.step_s(work)
            steps.append(JournalStep(len(steps), at, at + seconds, work, ()))
            at += seconds
    return steps


def test_next_tokens_and_prompts_have_levels_of_their_own() -> None:
    tokens = [1.0, 1.0, 1.2, 1.2, 1.2, 1.0, 1.0, 1.0]
    steps = [step for number, factor in enumerate(tokens) for step in burst(10.0 * number, factor, 0.9)]
    windows = [(10.0 * number, 10.0 * number + 5) for number in range(len(tokens))]
    levels = levels_between(windows, steps, COST)
    assert len(levels) == len(tokens) - 1
    assert [level.prompts for level in levels] == pytest.approx([0.9] * len(levels))
    assert levels[2].tokens == pytest.approx(levels[3].tokens)
    assert levels[2].tokens > levels[1].tokens > levels[6].tokens
    cost = AtLevel(COST, Level(1.2, 0.9))
    assert cost.step_s(TOKENS) == pytest.approx(1.2 * COST.step_s(TOKENS))
    assert cost.step_s(PROMPT) == pytest.approx(0.9 * COST.step_s(PROMPT))
    assert cost.between_s(PROMPT) == pytest.approx(1.2 * COST.between_s(PROMPT))


def test_bursts_that_do_not_agree_say_nothing_of_the_run_between_them() -> None:
    steps = [step for number in range(8) for step in burst(10.0 * number, (0.8, 1.25)[number % 2], 1.0)]
    levels = levels_between([(10.0 * number, 10.0 * number + 5) for number in range(8)], steps, COST)
    assert [level.tokens for level in levels] == pytest.approx([1.0] * 7)


def test_a_burst_without_steps_of_a_kind_says_nothing_of_them() -> None:
    steps = [step for number in range(4) for step in burst(10.0 * number, 1.1, 0.9)]
    windows = [(10.0 * number, 10.0 * number + 5) for number in range(4)]
    some = [step for step in steps if not (10.0 <= step.started < 20.0 and step.work == TOKENS)]
    for level in levels_between(windows, some, COST):
        assert level == pytest.approx((1.1, 0.9))
    for level in levels_between(windows, [step for step in steps if step.work == PROMPT], COST):
        assert level == pytest.approx((1.0, 0.9))


def case(rate: float, p90: float, machines: tuple[float, float], chance: list[float], real: list[float]) -> Found:
    def of(value: float) -> dict[str, float]:
        return {"ttft": 0.1, "tpot": 0.01, "rate": 1.0, "p90": value}

    slow, fast = machines
    runs, bounds = [of(one) for one in real], (of(slow), of(fast))
    return Found("chat", rate / 10, rate, 9, runs, [of(p90)], of(p90), chance, bounds, [Level(1.0, 1.0)], 0.0)


def knees(chance: tuple[list[float], list[float]]) -> Comparison:
    """Whose p90 of first tokens passes 0.4 s at about 10 requests a second, and in reality at 8.6."""
    low = case(8.0, 0.2, (0.3, 0.15), chance[0], [0.3, 0.35, 0.4, 0.35])
    return Comparison([low, case(12.0, 0.8, (1.0, 0.5), chance[1], [0.8, 0.8, 0.8, 0.8])], 0.05, COST, [])


def test_a_knee_lies_in_what_the_error_and_chance_leave_possible() -> None:
    sure = knees(([0.2] * 12, [0.8] * 12)).knees("chat")
    assert sure.plain == pytest.approx(10.0) and sure.real == pytest.approx(8.65, rel=0.01)
    low, high = sure.between
    assert low is not None and high is not None and 8.9 < low < 9.0 < 10.0 < high and not sure.inside
    unsure = knees(([0.1, 0.2, 0.3] * 4, [0.5, 0.8, 1.1] * 4)).knees("chat")
    assert unsure.between[0] is not None and unsure.between[0] < low and unsure.inside
