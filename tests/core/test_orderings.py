"""Who is served first, and that nobody waits for ever."""

from __future__ import annotations

import inspect
import random
from contextlib import suppress
from dataclasses import replace
from math import inf

import pytest

from armillary.core.config import SchedulerConfig
from armillary.core.order import ORDERS, EarliestDeadline, FirstComeFirstServed, Key, Order, Pace, Priority
from armillary.core.request import Request, Sequence
from armillary.core.scheduler import Scheduler
from armillary.core.step import StepResult
from armillary.errors import ArmillaryError, Code
from core_model import CheckedExecutor, Client, random_config, random_request

ONE_AT_A_TIME = SchedulerConfig(
    num_blocks=8, max_context=32, block_size=4, max_step_tokens=32, max_running=1, max_waiting=10_000, starvation_s=1.0
)


def request(name: str, **more: object) -> Request:
    return Request(name, (0, 1, 0), 4, **more)  # type: ignore[arg-type]


def served(client: Client) -> list[str]:
    """Names in the order of first admission."""
    names: list[str] = []
    next_step = client.scheduler.next_step

    def watch(now: float):  # type: ignore[no-untyped-def]
        step = next_step(now)
        if step is not None:
            names.extend(s.request.id for s in step.admitted if s.request.id not in names)
        return step

    client.scheduler.next_step = watch  # type: ignore[method-assign]
    return names


def test_first_come_first_served() -> None:
    client = Client(replace(ONE_AT_A_TIME, order="fcfs"))
    names = served(client)
    for i in range(20):
        client.submit(request(f"r{i}", priority=-i, deadline=float(-i)))
    client.finish()
    assert names == [f"r{i}" for i in range(20)]


def test_priority_then_arrival() -> None:
    client = Client(replace(ONE_AT_A_TIME, order="priority", starvation_s=1e6))
    names = served(client)
    for i in range(20):
        client.submit(request(f"r{i}", priority=i % 3))
    client.finish()
    assert names == [f"r{i}" for p in range(3) for i in range(20) if i % 3 == p]


def test_priorities_may_be_any_integer() -> None:
    client = Client(replace(ONE_AT_A_TIME, order="priority"))
    names = served(client)
    for i, priority in enumerate([10**400, 0, -(10**400), 2**53 + 1, 2**53]):
        client.submit(request(f"r{i}", priority=priority))
    client.finish()
    assert names == ["r2", "r1", "r4", "r3", "r0"]


def test_earliest_deadline_first_with_the_late_demoted_and_not_dropped() -> None:
    client = Client(replace(ONE_AT_A_TIME, order="deadline", starvation_s=1e6))
    client.scheduler.pace.observe(0.01)
    names = served(client)
    for name, deadline in {
        "none": None,
        "past": -1.0,
        "soon": 5.0,
        "later": 9.0,
        "hopeless": 0.03,
        "next": 2.0,
    }.items():
        client.submit(request(name, deadline=deadline))
    client.finish()
    assert names == ["next", "soon", "later", "none", "past", "hopeless"]
    assert all(len(choice.tokens) == 4 for choice in client.choices.values())


def test_a_request_is_demoted_when_its_time_runs_out_while_it_waits() -> None:
    client = Client(replace(ONE_AT_A_TIME, order="deadline", starvation_s=1e6))
    client.scheduler.pace.observe(0.01)
    names = served(client)
    client.submit(request("first"))
    client.step()
    client.submit(request("urgent", deadline=client.clock.now() + 0.5))
    client.submit(request("relaxed", deadline=client.clock.now() + 50.0))
    client.clock.advance(1.0)
    client.finish()
    assert names == ["first", "relaxed", "urgent"]


def test_a_faster_pace_brings_a_demoted_request_back() -> None:
    """It was hopeless at ten seconds a step; at a hundredth it is not."""
    pace = Pace()
    pace.observe(10.0)
    order = EarliestDeadline(30.0, pace)
    s = Sequence(request("a", deadline=20.0), 0, 0, 0.0)
    assert order.key(s, 0.0)[0] == 2.0
    assert order.changes_at(s, 0.0) == pytest.approx(1.0)
    for _ in range(200):
        pace.observe(0.01)
    assert order.key(s, 1.0)[0] == 1.0


@pytest.mark.parametrize("order", ORDERS)
def test_keys_change_only_when_announced(order: str) -> None:
    """At a constant pace, no key differs from what it was before the moment that `changes_at` named."""
    rnd = random.Random(0)
    pace = Pace()
    pace.observe(0.25)
    rule: Order = ORDERS[order](3.0, pace)
    for uid in range(300):
        arrival = rnd.random() * 5
        deadline = rnd.choice([None, arrival - 1, arrival + rnd.random() * 8])
        s = Sequence(request("a", deadline=deadline, priority=rnd.randrange(3)), 0, uid, arrival)
        now = arrival
        for _ in range(200):
            change = rule.changes_at(s, now)
            assert change > now
            before = rule.key(s, now)
            for moment in (now + (min(change, 100.0) - now) * f for f in (0.1, 0.5, 0.99)):
                if now <= moment < change:
                    assert rule.key(s, moment) == before
            if change == inf:
                break
            now = change
        assert rule.changes_at(s, 1000.0) == inf


# ------------------------------------------------------------------ starvation


@pytest.mark.parametrize("order", ORDERS)
def test_after_the_bound_only_older_requests_go_first(order: str) -> None:
    """Random lives: once a request is `starvation_s` old, nobody younger is admitted before it."""
    overtaken = starved = 0
    for seed in range(30):
        rnd = random.Random(seed)
        config = replace(random_config(rnd, order), starvation_s=0.1, max_waiting=1000)
        scheduler = Scheduler(config)
        executor = CheckedExecutor(config)
        now = 0.0
        for number in range(150):
            if number < 60:
                with suppress(ArmillaryError):  # some can never fit
                    scheduler.add(random_request(rnd, f"r{number}", now), now)
            step = scheduler.next_step(now)
            if step is None:
                break
            waiting = [s for alive in scheduler._alive.values() for s in alive if not s.running]
            for i, admitted in enumerate(step.admitted):
                for other in [*step.admitted[i + 1 :], *waiting]:
                    older = (other.arrival, other.uid) < (admitted.arrival, admitted.uid)
                    overtaken += older
                    if older and now >= other.arrival + config.starvation_s:
                        raise AssertionError(f"{admitted} was admitted at {now} before {other}, who starves")
                    starved += now >= other.arrival + config.starvation_s
            result = executor.run(step)
            scheduler.commit(step, result, now + result.duration, now)  # type: ignore[operator]
            now += result.duration or 0.0
    assert starved > 100, "nobody came near the bound"
    assert (overtaken > 100) == (order != "fcfs")


@pytest.mark.parametrize("order", ORDERS)
def test_an_endless_stream_of_more_urgent_requests(order: str) -> None:
    """The victim ends within its bound: the work that was accepted before it, and what was running already."""
    config = replace(ONE_AT_A_TIME, order=order, num_blocks=16, max_running=2)
    client = Client(config)
    for i in range(3):
        client.submit(request(f"older{i}", priority=5, deadline=1e6))
    client.submit(request("victim", priority=9))
    steps_after = serial = 0
    work_before = None
    while client.choices["victim", 0].finish is None:
        while client.scheduler.waiting_count < 6:  # faster than they can be served
            serial += 1
            client.submit(request(f"s{serial}", priority=0, deadline=client.clock.now() + 0.5))
        if client.clock.now() >= config.starvation_s:
            if work_before is None:
                running = sum(s.limit for s in client.scheduler.running)
                older = sum(s.limit for i in range(4) for s in client.scheduler._alive.get(f"older{i}", ()))
                work_before = running + older
            steps_after += 1
        client.step()
        assert serial < 2000
    if order == "fcfs":
        assert work_before is None
    else:
        assert work_before is not None and serial > 50, "the victim was not kept waiting at all"
        assert steps_after <= work_before


def test_a_big_request_is_not_passed_for_ever_by_small_ones() -> None:
    """It needs the whole pool; the stream of small ones fits beside each other, and still it is served."""
    client = Client(replace(ONE_AT_A_TIME, order="fcfs", max_running=4))
    client.submit(request("small"))
    client.step()
    client.submit(Request("big", (0,) * 24, 8))
    steps = serial = 0
    while client.choices["big", 0].finish is None:
        serial += 1
        client.submit(request(f"s{serial}"))
        client.step()
        steps += 1
        assert steps < 40


def test_the_one_who_gives_way_is_the_last_in_order() -> None:
    config = SchedulerConfig(
        num_blocks=6,
        max_context=24,
        block_size=4,
        max_step_tokens=24,
        max_running=3,
        order="priority",
        starvation_s=1e6,
    )
    scheduler = Scheduler(config)
    for name, priority in (("b", 1), ("c", 2), ("a", 0)):
        scheduler.add(Request(name, (ord(name), 1, 1), 20, priority=priority), 0.0)
    preempted: list[str] = []
    now = 0.0
    while not preempted:
        step = scheduler.next_step(now)
        assert step is not None
        preempted = [s.request.id for s in step.preempted]
        scheduler.commit(step, StepResult([1] * sum(e.rows for e in step.entries)), now + 1, now)
        now += 1
    assert preempted == ["c"]


# ------------------------------------------------------------------ a new ordering


class ShortestFirst:
    """By the tokens still to be generated; after `starvation_s` by age."""

    def __init__(self, starvation_s: float, pace: Pace) -> None:
        self._starvation_s = starvation_s

    def key(self, sequence: Sequence, now: float) -> Key:
        if now >= sequence.arrival + self._starvation_s:
            return (0.0, sequence.arrival)
        return (1.0, sequence.limit - len(sequence.tokens))

    def changes_at(self, sequence: Sequence, now: float) -> float:
        promotion = sequence.arrival + self._starvation_s
        return promotion if promotion > now else inf


def test_a_new_ordering_takes_twenty_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(inspect.getsource(ShortestFirst).splitlines()) <= 20
    monkeypatch.setitem(ORDERS, "shortest", ShortestFirst)
    client = Client(replace(ONE_AT_A_TIME, order="shortest", starvation_s=1e6))
    names = served(client)
    for i, length in enumerate([9, 3, 6, 1]):
        client.submit(Request(f"r{i}", (0, 1), length))
    client.finish()
    assert names == ["r3", "r1", "r2", "r0"]


def test_an_unknown_ordering_is_refused_by_name() -> None:
    with pytest.raises(ArmillaryError, match="fcfs, priority, deadline, given 'fifo'") as caught:
        Scheduler(replace(ONE_AT_A_TIME, order="fifo"))
    assert caught.value.code is Code.INVALID_DEPLOYMENT


def test_orderings_are_what_their_names_say() -> None:
    assert ORDERS == {"fcfs": FirstComeFirstServed, "priority": Priority, "deadline": EarliestDeadline}


def test_the_pace_follows_the_steps() -> None:
    pace = Pace()
    pace.observe(1.0)
    assert pace.seconds_per_step == 1.0
    for _ in range(100):
        pace.observe(2.0)
    assert pace.seconds_per_step == pytest.approx(2.0, rel=1e-3)
