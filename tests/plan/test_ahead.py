"""What is begun before it is asked for is what a search asks next, and changes nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from armillary.errors import ArmillaryError, Code
from armillary.plan.ahead import Outlook
from armillary.plan.crew import Crew
from armillary.plan.search import Found, Search

Question = tuple[int, float, int]
SPACE = range(40)


class World:
    """Designs with a best one, and a theory that is a quarter wrong."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def theory(self, design: int) -> float:
        if design == 17:
            raise ArmillaryError(Code.MEMORY, "must fit")
        off = random.Random(f"theory/{self.seed}/{design}").uniform(0.8, 1.25)
        return 30 * math.exp(-(((design - 12) / 9) ** 2)) * off

    def trial(self, design: int, rate: float, seed: int) -> bool:
        luck = random.Random(f"{self.seed}/{design}/{seed}").gauss(1, 0.01)
        return rate <= 20 * math.exp(-(((design - 14) / 9) ** 2)) * luck

    def search(self, each: Callable[[Any, Sequence[Question]], Iterable[bool]] | None = None) -> Found[int]:
        return Search(self.trial, each=each).run(SPACE, self.theory)


def test_most_of_what_is_asked_alone_was_foreseen() -> None:
    asked, met = 0, {1: 0, 2: 0}
    for world in map(World, range(8)):
        outlook = Outlook(SPACE, world.theory, lambda design: 1.0)
        foreseen: dict[int, list[Question]] = {1: [], 2: []}

        def each(_: Any, questions: Sequence[Question]) -> Iterable[bool]:
            nonlocal asked
            if len(questions) == 1:
                asked += 1
                for count, known in foreseen.items():
                    met[count] += questions[0] in known
            foreseen.update({count: outlook.next(questions, count) for count in met})
            assert not {*foreseen[2]} & {*questions} and len(foreseen[1]) <= 1
            for question in questions:
                outlook.told(question, world.trial(*question))
                yield world.trial(*question)

        assert world.search(each) == world.search()
    assert asked > 60 and met[1] > 0.5 * asked and met[2] > 0.8 * asked, (asked, met)


class Pool:
    """Does what it is given when it is told to."""

    def __init__(self) -> None:
        self.given: list[tuple[Future[Any], Any]] = []

    def submit(self, work: Any, task: Any, item: Any, pace: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.given.append((future, item))
        return future

    def do(self, place: int) -> None:
        future, item = self.given[place]
        assert future.set_running_or_notify_cancel()
        future.set_result((10 * item, 7, 0.5))


@pytest.fixture
def crew() -> Crew:
    trials: Any = SimpleNamespace(simulated=0, seconds=0.0, pace=None)
    found = Crew(trials, 1)
    found._pool, found._processes = Pool(), 2  # type: ignore[assignment]
    return found


def alone(trials: Any, item: int) -> int:
    trials.simulated += 1
    return 10 * item


def test_what_is_begun_counts_once_it_is_asked_for(crew: Crew) -> None:
    pool: Any = crew._pool
    assert list(crew.each(alone, [1], lambda count: [2, 3][:count])) == [10]  # by this process, while another begins
    assert [item for _, item in pool.given] == [2]
    pool.do(0)
    assert crew._trials.simulated == 1
    assert list(crew.each(alone, [2], lambda count: [4][:count])) == [20]
    assert crew._trials.simulated == 8 and crew._trials.seconds == 0.5
    assert [item for _, item in pool.given] == [2, 4]


def test_what_has_not_begun_gives_way_and_one_process_is_left(crew: Crew) -> None:
    pool: Any = crew._pool
    assert list(crew.each(alone, [1], lambda count: [2][:count])) == [10]
    assert list(crew.each(alone, [3], lambda count: [4][:count])) == [30]
    assert pool.given[0][0].cancelled() and [item for _, item in pool.given] == [2, 4]
    pool.given[1][0].set_running_or_notify_cancel()
    assert list(crew.each(alone, [5], lambda count: [6][:count])) == [50]
    assert [item for _, item in pool.given] == [2, 4]  # that one is still at it
    pool.given[1][0].set_result((40, 7, 0.5))
    assert list(crew.each(alone, [4])) == [40]
