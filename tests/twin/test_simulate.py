"""Simulation: known answers, equal results for equal inputs, and workloads that react."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest

from armillary.core.config import SchedulerConfig
from armillary.core.journal import Journal, expand
from armillary.core.prefix import Name, PrefixIndex
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.measure.workload import WorkItem, Workload
from armillary.twin.cost import IdealCost
from armillary.twin.demand import Demand, Due, Prompts
from armillary.twin.outcome import FINISHES
from armillary.twin.replica import quick_digest
from armillary.twin.simulate import simulate
from armillary.twin.work import StepWork

CONFIG = SchedulerConfig(num_blocks=64, max_context=128, block_size=4, max_step_tokens=32, max_running=8)
ONE = SchedulerConfig(num_blocks=64, max_context=128, max_running=1, max_waiting=10**6)


def items(*rows: dict[str, object]) -> Workload:
    return Workload(tuple(WorkItem.model_validate({"id": str(i), **row}) for i, row in enumerate(rows)))


def test_times_are_those_of_a_calculation_by_hand() -> None:
    """Steps of one second with a quarter between: a prompt of 40 takes two (32 tokens a step), then one a token."""
    workload = items(
        {"arrival": 0.5, "prompt_tokens": 40, "output_tokens": 3},
        {"arrival": 0.75, "prompt_tokens": 3, "output_tokens": 2},
        {"arrival": 9.0, "prompt_tokens": 3, "output_tokens": 1},
    )
    result = simulate(CONFIG, workload, IdealCost(1.0, between=0.25))
    found = result.requests
    # The first step lasts from 0.5 to 1.5, the second from 1.75 to 2.75, and has room for the newcomer.
    assert found.first.tolist() == [2.75, 2.75, 10.0]
    assert found.end.tolist() == [5.25, 4.0, 10.0]
    assert found.output_tokens.tolist() == [3, 2, 1]
    assert found.ok.all() and result.steps.steps == 5
    assert (result.steps.busy_s, result.steps.between_s, result.duration_s) == (5.0, 1.25, 10.25)


def test_latencies_count_from_when_a_request_was_due() -> None:
    class Slow(IdealCost):
        def request_s(self, prompt_tokens: int) -> float:
            return 0.1 * prompt_tokens

    workload = items(
        {"arrival": 1.0, "prompt_tokens": 20, "output_tokens": 1},
        {"arrival": 1.5, "prompt_tokens": 5, "output_tokens": 1},
    )
    found = simulate(CONFIG, workload, Slow(0.5)).requests
    assert found.due.tolist() == [1.0, 1.5]
    # Read from 1.0 to 3.0, and from there to 3.5, when the first one's step ends, which the second one's follows.
    assert found.first.tolist() == [3.5, 4.0], "they are read one after the other"


def test_who_comes_at_once_is_read_in_turn() -> None:
    class Slow(IdealCost):
        def request_s(self, prompt_tokens: int) -> float:
            return 0.1

    crowd = Workload(tuple(WorkItem(id=str(i), prompt_tokens=4, output_tokens=1) for i in range(6)), users=3)
    found = simulate(CONFIG, crowd, Slow(0.01)).requests
    # A user's next one is brought when the last one is answered, and stands behind the others.
    assert found.first.tolist() == pytest.approx([0.11, 0.21, 0.31, 0.41, 0.51, 0.61])
    beside = Slow(0.01)
    beside.turns = False
    assert simulate(CONFIG, crowd, beside).requests.first[:3].tolist() == pytest.approx([0.11] * 3), "side by side"
    wide = Demand(crowd, Slow(0.01), desks=3)
    assert [wide.next_time, wide.take().row, wide.next_time, wide.take().row, wide.next_time] == [0.1, 0, 0.1, 1, 0.1]


def test_a_single_server_queue_is_lindleys() -> None:
    """max_running 1 and one token each: wait[i + 1] = max(0, wait[i] + service - gap)."""
    rng = np.random.default_rng(3)
    arrivals = np.cumsum(rng.exponential(1.0, 500))
    workload = items(*({"arrival": float(a), "prompt_tokens": 1, "output_tokens": 1} for a in arrivals))
    found = simulate(ONE, workload, IdealCost(0.8)).requests
    ended = 0.0
    expected = [ended := max(ended, a) + 0.8 for a in arrivals]
    assert found.end == pytest.approx(expected)


def test_users_of_a_closed_loop_think_between_answer_and_request() -> None:
    workload = Workload(
        tuple(WorkItem(id=str(i), prompt_tokens=1, output_tokens=2, think=1.0) for i in range(6)), users=2
    )
    found = simulate(CONFIG, workload, IdealCost(0.25)).requests
    assert found.due.tolist() == [1.0, 1.0, 2.5, 2.5, 4.0, 4.0]
    assert found.ok.all()


def test_turns_of_a_session_wait_for_the_one_before() -> None:
    workload = items(
        {"arrival": 0.0, "prompt_tokens": 4, "output_tokens": 4, "session": "a"},
        {"arrival": 0.25, "prompt_tokens": 4, "output_tokens": 1, "session": "a", "think": 0.5},
        {"arrival": 8.0, "prompt_tokens": 4, "output_tokens": 1, "session": "a", "think": 0.5},
        {"arrival": 9.0, "prompt_tokens": 4, "output_tokens": 1, "session": "b"},
    )
    found = simulate(CONFIG, workload, IdealCost(1.0)).requests
    assert found.due.tolist() == [0.0, 4.5, 8.0, 9.0]


def test_requests_with_a_prefix_in_common_find_it_cached() -> None:
    row = {"prompt_tokens": 20, "output_tokens": 1, "prefix": [("p", 16)]}
    found = simulate(CONFIG, items(*({"arrival": float(t), **row} for t in range(3))), IdealCost(0.1)).requests
    assert found.cached_tokens.tolist() == [0, 16, 16]


def test_a_conversation_finds_its_prompt_and_its_answer_cached() -> None:
    turns = [
        {"prompt_tokens": history + 8, "output_tokens": 5, "history": history, "session": "s", "think": 0.5}
        for history in (0, 13, 26)
    ]
    found = simulate(CONFIG, items(*({"arrival": 0.0, **turn} for turn in turns)), IdealCost(0.1)).requests
    # Full blocks of what was computed: all of it but the last token of an answer.
    assert found.cached_tokens.tolist() == [0, 12, 24]
    closed = Workload(tuple(WorkItem.model_validate({"id": str(i), **turn}) for i, turn in enumerate(turns)), users=2)
    again = simulate(CONFIG, closed, IdealCost(0.1)).requests
    assert again.cached_tokens.tolist() == [0, 12, 24]
    assert again.due[1] == again.end[0] + 0.5


def test_what_no_turn_repeats_is_forgotten() -> None:
    turns = [
        {"arrival": 0.0, "prompt_tokens": history + 8, "output_tokens": 5, "history": history, "session": f"s{n}"}
        for n in range(5) for history in (0, 13)
    ]  # fmt: skip
    workload = items(*turns)
    prompts, blind = Prompts(workload), Prompts()
    for row, item in enumerate(workload.items):
        due = Due(0.0, row, item)
        assert prompts.request(due) == blind.request(due)
        assert len(prompts._said) == (row + 1) % 2
    assert len(blind._said) == 5


def test_digests_that_requests_bring_are_those_of_the_index() -> None:
    spec = WorkloadSpec(
        requests=120, rate=20.0, prompt_length="uniform:1,60", output_length="uniform:1,20", prefixes=2,
        prefix_length=22, turns="geometric:4", seed=3,
    )  # fmt: skip
    index, brought, reused = PrefixIndex(64, 4, quick_digest), 0, 0
    for workload in (synthesise(spec), synthesise(spec.model_copy(update={"turns": "1"}))):
        prompts, blind = Prompts(workload, 4), Prompts(workload)
        for row, item in enumerate(workload.items):
            made, plain = (each.request(Due(0.0, row, item)) for each in (prompts, blind))
            digests: list[Name] = []
            index.extend_digests(digests, list(plain.prompt), "", (len(plain.prompt) - 1) // 4)
            assert list(made.digests) == digests and plain.digests == () and made.prompt == plain.prompt
            brought, reused = brought + len(digests), reused + bool(item.history)
        assert not prompts._of_session
    assert brought > 1000 and reused > 20


def test_what_never_fits_or_finds_no_room_is_refused_and_counted() -> None:
    config = SchedulerConfig(num_blocks=8, max_context=32, block_size=4, max_running=1, max_waiting=1)
    rows = [{"arrival": 0.0, "prompt_tokens": n, "output_tokens": 1} for n in (4, 4, 4, 40)]
    result = simulate(config, items(*rows), IdealCost(1.0))
    assert [FINISHES[i] for i in result.requests.finish] == ["length", "refused", "refused", "refused"]
    assert result.requests.replica.tolist() == [0, -1, -1, -1]
    assert np.isnan(result.requests.first[1:]).all() and result.stats.refused == 3


def test_equal_inputs_give_equal_results_byte_for_byte() -> None:
    spec = WorkloadSpec(
        requests=200, rate=20.0, prompt_length="lognormal:20,1.0,60", output_length="uniform:1,40", prefixes=3,
        prefix_length=12, seed=5,
    )  # fmt: skip
    journals: list[list[str]] = []
    results = []
    for _ in range(2):
        journals.append([])
        cost = IdealCost(0.01, 0.002, exponential=True, seed=1)
        results.append(simulate(CONFIG, synthesise(spec), cost, journal=Journal(journals[-1].append)))
    assert journals[0] == journals[1] and len(journals[0]) > 400
    for name in ("due", "first", "end", "cached_tokens", "finish"):
        first, second = (getattr(result.requests, name).tobytes() for result in results)
        assert first == second


class Reading(IdealCost):
    """Steps wait for a server that reads requests, takes note of those that ended and is busy near those that begin."""

    def step_s(self, work: StepWork) -> float:
        beside = 0.03 * work.near + 0.005 * work.read + 1e-4 * work.read_tokens + 0.004 * work.ended
        return super().step_s(work) + beside

    def request_s(self, prompt_tokens: int) -> float:
        return 0.02

    def held_s(self, prompt_tokens: int) -> float:
        return 0.005 + 1e-4 * prompt_tokens


@pytest.mark.parametrize("users", [None, 12])
@pytest.mark.parametrize("near_s", [0.0, 0.05])
def test_leaping_changes_no_result(users: int | None, near_s: float) -> None:
    given: dict[str, Any] = {"users": users, "think": 0.3} if users else {"rate": 15.0}
    spec = WorkloadSpec(
        requests=150, prompt_length="uniform:1,60", output_length="uniform:1,40", prefixes=2, prefix_length=9,
        deadline=3.0, seed=8, **given,
    )  # fmt: skip
    results = []
    for leap in (False, True):
        journal: list[str] = []
        cost = Reading(0.01, 0.002, between=0.001, exponential=not near_s, seed=1)
        cost.near_s = near_s
        result = simulate(CONFIG, synthesise(spec), cost, journal=Journal(journal.append), leap=leap)
        lines = [step for line in journal for step in expand(line)]
        columns = [
            getattr(result.requests, name).tobytes() for name in ("due", "first", "end", "cached_tokens", "finish")
        ]
        results.append((lines, columns, result.stats, result.steps, result.duration_s))
        assert any(line.startswith('{"leap":') for line in journal) == leap
    assert results[0] == results[1]


def test_the_time_near_a_request_is_spread_over_the_steps_that_follow() -> None:
    class Near(IdealCost):
        """Steps of 0.1 s alone, of 0.3 s beside a server, and 1 s near each request that comes or goes."""

        near_s = 0.1

        def step_s(self, work: StepWork) -> float:
            return 0.3 + work.near

        def between_s(self, work: StepWork) -> float:
            shares.append(work.near)
            return 0.0

    shares: list[float] = []
    result = simulate(CONFIG, items({"arrival": 0.0, "prompt_tokens": 4, "output_tokens": 99}), Near(0.1))
    assert (float(result.requests.first[0]), result.steps.busy_s) == pytest.approx((0.3 + 0.5, 31.2))
    assert shares[0] == pytest.approx(1 / 2), "the step that admits"
    assert shares[1:8] == pytest.approx([1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 32, 0.0]), "from its first token on"


def test_a_first_token_is_longer_on_its_way_than_the_last() -> None:
    rows = [{"arrival": 0.0, "prompt_tokens": 4, "output_tokens": n} for n in (1, 3, 9)]
    plain, cost = IdealCost(0.1), IdealCost(0.1)
    cost.first_s = 0.25
    for row, end in zip(rows, (0.35, 0.35, 0.9), strict=True):
        found, soon = (simulate(CONFIG, items(row), each).requests for each in (cost, plain))
        assert float(found.first[0]) == pytest.approx(float(soon.first[0]) + 0.25)
        assert float(found.end[0]) == pytest.approx(end), "none comes before the first"
    users = {"prompt_tokens": 4, "output_tokens": 1, "arrival": None}
    closed = Workload(tuple(WorkItem(id=str(i), **users) for i in range(3)), users=1)
    assert simulate(CONFIG, closed, cost).requests.due.tolist() == pytest.approx([0.0, 0.35, 0.7])


def test_a_step_waits_while_a_server_reads_and_a_lone_request_waits_no_longer_for_that() -> None:
    rows = [
        {"arrival": 0.0, "prompt_tokens": 10, "output_tokens": 9},
        {"arrival": 0.05, "prompt_tokens": 20, "output_tokens": 2},
    ]
    cost = Reading(0.01)
    cost.near_s = 1e-9  # all of it in one step
    alone, both = (simulate(CONFIG, items(*chosen), cost) for chosen in (rows[:1], rows))
    assert alone.requests.first[0] == pytest.approx(0.02 + 0.01 + 0.03), "read, one step, what is near"
    # The second is read from 50 to 70 ms; the step under way at 63 ms ends, and the next takes 7 ms, ...
    more = 0.007 + 3 * 0.03 + 0.004  # ... 30 ms near it, near its first token and near its end, and 4 ms its end
    assert both.requests.end[0] - alone.requests.end[0] == pytest.approx(more)
    assert both.steps.busy_s == pytest.approx(alone.steps.busy_s + more)


def test_requests_that_begin_together_take_one_time_together() -> None:
    class Together(IdealCost):
        """Steps of 10 ms, and 100 ms for the time near requests that come, however many."""

        near_s = 0.02

        def step_s(self, work: StepWork) -> float:
            return 0.01 + 0.1 * work.near

    longest = []
    for count in (1, 4):
        rows = [{"arrival": 0.0, "prompt_tokens": 4, "output_tokens": 50}] * count
        longest.append(simulate(CONFIG, items(*rows), Together(0.01)).steps.busy_s)
    assert longest[0] == pytest.approx(50 * 0.01 + 0.1 * (1 / 3 + 1)), "a third when it begins, all when it is answered"
    assert longest[1] == pytest.approx(longest[0]), "and one near four"


def test_a_workload_may_be_made_while_it_is_read() -> None:
    count = 3000
    stream = (WorkItem(id=str(i), arrival=i * 0.1, prompt_tokens=2, output_tokens=2) for i in range(count))
    result = simulate(CONFIG, stream, IdealCost(0.01))
    assert len(result.requests) == count and result.requests.ok.all()


def test_memory_is_flat_but_for_the_columns_of_the_results() -> None:
    def peak(count: int) -> int:
        stream = (
            WorkItem(id=str(i), arrival=i * 0.1, prompt_tokens=20, output_tokens=2, prefix=(("same", 8),))
            for i in range(count)
        )
        gc.collect()
        tracemalloc.start()
        try:
            result = simulate(CONFIG, stream, IdealCost(0.01))
            assert len(result.requests) == count and result.requests.ok.all()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # Python keeps up to two thousand tuples that nobody holds. Of each request the columns hold 73 bytes, and growing
    # ones ask for some in advance.
    few, many = peak(3000), peak(6000)
    assert (many - few) / 3000 < 128


def test_a_simulation_can_be_cut_short() -> None:
    rows = [{"arrival": float(t), "prompt_tokens": 4, "output_tokens": 2} for t in range(10)]
    result = simulate(CONFIG, items(*rows), IdealCost(0.4), until=4.25)
    assert len(result.requests) == 5 and result.requests.ok.tolist() == [True] * 4 + [False]
