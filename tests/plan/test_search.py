"""The search finds what an exhaustive one finds, with a tenth of the simulations."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from armillary.errors import ArmillaryError, Code
from armillary.plan.search import PATIENCE, PATIENCE_BETWEEN, ROUNDS, TOGETHER, Round, Search

Design = tuple[int, int, int]


def capacity(design: Design) -> float:
    """A made-up surface with one best design, and others near it."""
    batch, chunk, kind = design
    return 30 * math.exp(-((math.log2(batch) - 5) ** 2) / 8 - (math.log2(chunk) - 8) ** 2 / 18) * (1 + 0.3 * kind)


def noisy(design: Design, rate: float, seed: int) -> bool:
    """The service level holds below the capacity, as far as a simulation can tell."""
    draw = random.Random(f"{design}/{seed}/1.0").gauss(0, 0.015)
    common = random.Random(f"{seed}/1.0").gauss(0, 0.01)
    return rate <= capacity(design) * (1 + draw + common)


def theory(design: Design) -> float:
    """Right about how designs compare, but for a third either way, and wrong about all of them."""
    return 2 * capacity(design) * random.Random(f"theory/{design}").uniform(0.75, 1.33)


def ignorant(design: Design) -> float:
    return 5.0


SPACE = list(itertools.product([8, 16, 32, 64, 128, 256], [64, 128, 256, 512, 1024], [0, 1, 2]))


@pytest.mark.parametrize("size", [24, 36, 90])
@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_as_good_as_an_exhaustive_one_and_costs_a_tenth(seed: int, size: int) -> None:
    designs = random.Random(seed).sample(SPACE, size)
    spent = 0

    def counted(design: Design, rate: float, number: int) -> bool:
        nonlocal spent
        spent += 1
        return noisy(design, rate, number)

    found = Search(counted).run(designs, theory)
    best = max(map(capacity, designs))
    chosen, knee = found.ranking[0]
    assert capacity(chosen) >= 0.98 * best
    assert knee.rate == pytest.approx(capacity(chosen), rel=0.06)
    assert spent <= 0.1 * size * exhaustive_trials() and found.trials <= 0.1 * size * exhaustive_trials()
    assert len(found.known) + len(found.unlikely) == size


def exhaustive_trials(least: float = 1.0, most: float = 100.0) -> int:
    """Of each design: bisection to the last round's precision, with its seeds."""
    return math.ceil(math.log2(math.log(most / least) / math.log(1 + ROUNDS[-1].precision))) * ROUNDS[-1].seeds


def test_a_price_is_weighed() -> None:
    search = Search(lambda design, rate, seed: rate <= capacity(design), price=lambda design: 1 + 2 * design[2])
    assert search.run(SPACE, ignorant).ranking[0][0] == (32, 256, 0)


def test_a_crash_is_no_miss() -> None:
    def trial(design: Design, rate: float, seed: int) -> bool:
        if design[2] == 2:
            raise ArmillaryError(Code.MEMORY, f"must fit, given {design}")
        return noisy(design, rate, seed)

    found = Search(trial).run(SPACE, ignorant)
    assert found.ranking[0][0] == (32, 256, 1)
    assert len(found.refused) == len(SPACE) // 3 and found.refused[8, 64, 2] == "must fit, given (8, 64, 2)"
    with pytest.raises(ArmillaryError, match=r"at least one design must be possible, given 1, so: must fit"):
        Search(trial).run([(8, 64, 2)], ignorant)
    with pytest.raises(ZeroDivisionError):
        Search(lambda *question: bool(1 / 0)).run(SPACE, ignorant)


def test_a_design_for_which_no_rate_holds_is_worth_nothing() -> None:
    found = Search(lambda design, rate, seed: design[0] == 8 and rate < 3).run(SPACE, lambda design: 100.0)
    assert found.ranking[0][0][0] == 8 and found.ranking[0][1].low <= 3 <= found.ranking[0][1].high
    nothing = Search(lambda *question: False).run(SPACE[:2], ignorant)
    assert nothing.ranking[0][1].rate == 0.0


def test_what_theory_expects_little_of_is_not_simulated_and_is_told() -> None:
    asked: set[Design] = set()

    def trial(design: Design, rate: float, seed: int) -> bool:
        asked.add(design)
        return noisy(design, rate, seed)

    found = Search(trial).run(SPACE, theory)
    assert len(asked) < 0.5 * len(SPACE) and asked.isdisjoint(found.unlikely)
    assert capacity(found.ranking[0][0]) >= 0.98 * max(map(capacity, SPACE))


def test_after_many_that_were_no_better_no_other_is_asked() -> None:
    asked: set[int] = set()

    def trial(design: int, rate: float, seed: int) -> bool:
        asked.add(design)
        return rate <= 10.0 * (1.2 if design == 5 else 1.0)

    found = Search(trial).run(range(60), lambda design: 20.0 * 0.965**design)
    assert found.ranking[0][0] == 5  # which begins the count anew
    assert 6 + PATIENCE <= len(asked) < 6 + PATIENCE + TOGETHER and asked == set(range(len(asked)))
    assert found.unlikely == list(range(len(asked), 60))
    asked.clear()
    Search(trial).run(range(60), lambda design: 20.0)  # who expects the same of all expects less of none
    assert asked == set(range(60))


def test_of_designs_that_theory_does_not_tell_apart_two_speak_for_all() -> None:
    """A limit that never binds makes many of them, which would else be taken for many that were no better."""
    asked: set[int] = set()

    def trial(design: int, rate: float, seed: int) -> bool:
        asked.add(design)
        return rate <= (10.0 if design < 20 else 11.6 if design == 23 else 11.0 if design < 40 else 6.0)

    found = Search(trial).run(range(60), lambda design: 20.0 - 2 * (design // 20))
    assert found.ranking[0][0] == 23
    tried = {0, 19, 20, 39, 40, 59}
    between = asked - tried
    assert (
        asked > tried and max(between) < 23 + PATIENCE_BETWEEN + TOGETHER
    )  # one that was better begins the count anew
    assert between == set(range(21, max(between) + 1))
    assert sorted(found.unlikely) == sorted(set(range(60)) - asked)


def test_questions_side_by_side_change_nothing() -> None:
    alone = Search(noisy).run(SPACE, theory)
    batches = []

    def each(trial, questions):
        batches.append(len(questions))
        return [trial(*question) for question in questions]

    together = Search(noisy, each=each).run(SPACE, theory)
    assert (together.ranking, together.trials, together.known) == (alone.ranking, alone.trials, alone.known)
    assert max(batches) == TOGETHER


def test_what_follows_from_an_answer_is_not_asked() -> None:
    met: dict[tuple[Design, int], tuple[float, float]] = {}

    def trial(design: Design, rate: float, seed: int) -> bool:
        low, high = met.get((design, seed), (0.0, math.inf))
        assert low < rate < high
        held = noisy(design, rate, seed)
        met[design, seed] = (max(low, rate), high) if held else (low, min(high, rate))
        return held

    design, knee = Search(trial).run(SPACE, theory).ranking[0]
    # Most of the last round's workloads are met below the knee, and not above it.
    share = [sum(noisy(design, rate, seed) for seed in range(ROUNDS[-1].seeds)) for rate in (knee.low, knee.high)]
    assert share[0] > ROUNDS[-1].seeds / 2 > share[1]


def test_a_knee_far_above_what_matters_is_not_looked_for() -> None:
    search: Search[Design] = Search(lambda design, rate, seed: rate <= 500)
    assert search.knee((1, 1, 1), 10.0, Round(1, 0.1, 0.03), most=40.0).low < 50
    assert search.found.trials < 8


def test_a_knee_is_found_from_any_start() -> None:
    stage = Round(1, 0.1, 0.01)
    for start, then in ((1e-3, 0.0), (1.0, 0.0), (17.0, 0.0), (1e4, 0.0), (17.0, 17.5), (15.0, 16.0), (18.0, 19.0)):
        search: Search[Design] = Search(lambda design, rate, seed: rate <= 17.3)
        knee = search.knee((1, 1, 1), start, stage, then=then)
        assert knee.low <= 17.3 < knee.high <= knee.low * 1.01 and search.found.trials < 30


def test_once_enough_are_near_others_are_only_asked_whether_they_are_better() -> None:
    asked: list[tuple[int, float]] = []

    def trial(design: int, rate: float, seed: int) -> bool:
        asked.append((design, rate))
        return rate <= (11.0 if design == 30 else 10.0)

    stage = ROUNDS[0]
    found = Search(trial).run(range(40), lambda design: 20.0, (stage,))
    assert found.ranking[0][0] == 30
    questions = [sum(one == design for one, _ in asked) for design in range(40)]
    near = [design for design, count in enumerate(questions) if count == 2]
    # The first design has its own knee found, the last of its level is asked beside it, those between come in order.
    first = [design for design in near if design < 30]
    assert questions[0] > 2 and stage.keep - 1 <= len(first) < stage.keep - 1 + TOGETHER
    assert all(questions[design] == 1 for design in range(1, 30) if design not in near)
    # The better one has raised the bar beyond what is near to it, so that all after it are asked that first.
    assert all(questions[design] == 1 for design in range(31 + TOGETHER, 39))
