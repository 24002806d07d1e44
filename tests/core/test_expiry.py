"""Requests with an end of their time: in every state, under every ordering, with clocks that lie, replayable."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from math import inf, nan

import pytest

from armillary.core.clock import SteadyTime, VirtualClock
from armillary.core.config import SchedulerConfig
from armillary.core.deadlines import Deadlines
from armillary.core.engine import Engine
from armillary.core.journal import Journal
from armillary.core.load import QueueLoad, Share, seconds_to_work_off
from armillary.core.order import Pace
from armillary.core.request import FinishReason, Request
from armillary.core.scheduler import Scheduler
from armillary.core.stats import SchedulerStats
from armillary.core.step import Event, Step, StepResult
from armillary.errors import ArmillaryError, Code, Refused
from armillary.twin.replay import replay
from core_model import FAULTS, Client, random_config, random_request

WIDE = SchedulerConfig(num_blocks=64, max_context=64, block_size=4, max_step_tokens=8, max_running=4)


def ends(client: Client, name: str) -> list[FinishReason | None]:
    return [choice.finish for (request, _), choice in client.choices.items() if request == name]


def test_a_queued_request_ends_at_its_time_and_never_runs() -> None:
    client = Client(replace(WIDE, max_running=1))
    client.submit(Request("long", (1, 0), 30))
    client.submit(Request("late", (1, 1), 4, n=1, expires=0.05))
    while ends(client, "late") == [None]:
        assert client.step()
    assert ends(client, "late") == [FinishReason.DEADLINE] and not client.choices["late", 0].tokens
    assert ends(client, "long") == [None], "nobody else ends"
    assert client.scheduler.waiting_count == 0
    assert client.clock.now() >= 0.05
    client.finish()


@pytest.mark.parametrize("n", [1, 3])
def test_a_request_in_its_prompt_gives_its_blocks_back_within_the_step(n: int) -> None:
    client = Client(WIDE)
    client.submit(Request("r", (1,) * 40, 8, n=n, expires=0.008))
    assert client.step() and client.scheduler.pool.used_count == 10
    assert client.step(), "the step at whose end the time is over"
    assert client.scheduler.pool.used_count == 0 and client.engine.idle
    assert ends(client, "r") == [FinishReason.DEADLINE] * n
    client.finish()


@pytest.mark.parametrize("n", [1, 3])
def test_a_request_that_generates_ends_with_what_it_has(n: int) -> None:
    client = Client(WIDE)
    client.submit(Request("r", (1, 0), 30, n=n, expires=0.03))
    client.submit(Request("other", (0, 1), 30))
    while ends(client, "r") != [FinishReason.DEADLINE] * n:
        assert client.step()
    assert all(0 < len(client.choices["r", index].tokens) < 30 for index in range(n))
    assert client.scheduler.running_count == 1
    client.finish()
    assert ends(client, "other") == [FinishReason.LENGTH]


def test_what_is_ready_after_the_time_is_no_success() -> None:
    """The last token comes with the step that ends too late."""
    client = Client(WIDE)
    client.submit(Request("r", (1, 0), 1, expires=0.001))
    assert client.step()
    assert ends(client, "r") == [FinishReason.DEADLINE] and not client.choices["r", 0].tokens
    client.finish()


def test_a_time_that_is_over_at_arrival_is_refused_with_figures() -> None:
    client = Client(WIDE)
    client.clock.advance(10.0)
    for expires in (9.0, 10.0):
        refusal = client.refuse(Request("r", (1,), 1, expires=expires))
        assert refusal.code is Code.DEADLINE
    assert "1.000 seconds" in client.refuse(Request("r", (1,), 1, expires=9.0)).message
    assert client.engine.idle
    for expires in (nan, inf, -inf):
        assert client.refuse(Request("r", (1,), 1, expires=expires)).code is Code.INVALID_REQUEST


def test_an_id_used_again_is_not_ended_by_its_predecessor() -> None:
    client = Client(WIDE)
    client.submit(Request("r", (1, 0), 1, expires=0.1))
    client.finish()
    client.choices.clear()
    client.submit(Request("r", (1, 0), 50))
    while client.clock.now() < 0.12:
        assert client.step()
    assert ends(client, "r") == [None]


def test_a_soft_deadline_ends_nothing() -> None:
    client = Client(replace(WIDE, order="deadline"))
    client.submit(Request("r", (1, 0), 30, deadline=0.01))
    client.finish()
    assert ends(client, "r") == [FinishReason.LENGTH] and client.clock.now() > 0.02


def busy(seed: int, faults: bool = True) -> tuple[list[str], Client]:
    """A life in which times end in every state; its journal."""
    rnd, fault_rnd = random.Random(seed), random.Random(-seed)
    lines: list[str] = []
    client = Client(
        random_config(rnd),
        lambda step: fault_rnd.choice(FAULTS) if faults and fault_rnd.random() < 0.05 else None,
        journal=lines.append,
    )
    for number in range(120):
        now = client.clock.now()
        if number < 80 and rnd.random() < 0.6:
            expires = rnd.choice([None, now + rnd.random() * 0.02, now + rnd.random() * 0.2, now + 100.0])
            client.submit(replace(random_request(rnd, f"r{number}", now), expires=expires))
        if rnd.random() < 0.1:
            client.cancel(f"r{rnd.randrange(number + 1)}", rnd.choice([None, 0, 1]), FinishReason.CANCELLED)
        if rnd.random() < 0.2:
            client.clock.advance(rnd.random() * 0.05)
        if rnd.random() < 0.1:
            client.engine.expire()
            client.scheduler.check()
        client.step()
        for (name, _), choice in client.choices.items():
            expires = client.requests[name].expires
            over = expires is not None and expires <= client.clock.now()
            assert not over or choice.finish is not None, f"{name} outlives its time"
    client.finish()
    return lines, client


def test_every_state_ends_in_time_and_the_journal_lives_it_again() -> None:
    met: Counter[str] = Counter()
    for seed in range(40):
        lines, client = busy(seed)
        assert replay(lines) == lines
        for line in map(json.loads, lines):
            met["between steps"] += len(line.get("expire", ()))
            met["in steps"] += sum(reason == "deadline" for *_, reason in line.get("ended", ()))
        for (name, _), choice in client.choices.items():
            if choice.finish is FinishReason.DEADLINE:
                met["untouched" if not choice.tokens else "begun"] += 1
                met["several"] += client.requests[name].n > 1
    assert all(met[what] > 100 for what in ("between steps", "in steps", "untouched", "begun", "several")), met


class Faulty:
    """A clock that says what it is told to."""

    def __init__(self, value: float = 100.0) -> None:
        self.value = value

    def now(self) -> float:
        return self.value

    def advance(self, seconds: float) -> None:
        self.value += seconds


class Quick:
    """Takes as long as it is told, and answers 1."""

    def run(self, step: Step) -> StepResult:
        return StepResult([1] * sum(entry.rows for entry in step.entries), duration=0.01)


def test_a_clock_that_jumps_back_moves_no_deadline_by_more_than_the_jump_took() -> None:
    clock = Faulty()
    lines: list[str] = []
    heard: list[Event] = []
    engine = Engine(Scheduler(WIDE), Quick(), clock, heard.extend, Journal(lines.append))
    engine.submit(Request("r", (1,), 60, expires=engine.now() + 0.2))
    for _ in range(10):
        assert engine.step()
    clock.value -= 3600.0
    assert engine.step()
    clock.value = nan
    assert engine.step()
    clock.value = -9000.0
    while engine.step():
        pass
    assert heard[-1].finish is FinishReason.DEADLINE
    assert 19 <= len(heard) - 1 <= 21, "the hour was not waited for, nor the time before it forgotten"
    times = [line[key] for line in map(json.loads, lines) for key in ("at", "until") if key in line]
    assert times == sorted(times)
    assert replay(lines) == lines


def test_a_clock_that_jumps_forward_ends_what_has_a_time_and_nothing_else() -> None:
    clock = Faulty()
    heard: list[Event] = []
    engine = Engine(Scheduler(WIDE), Quick(), clock, heard.extend)
    engine.submit(Request("timed", (1,), 60, n=2, expires=1000.0))
    engine.submit(Request("free", (1,), 20))
    engine.step()
    clock.value += 1e6
    engine.step()
    assert {(e.request_id, e.finish) for e in heard if e.finish} == {("timed", FinishReason.DEADLINE)}
    engine.run_until_idle()
    assert heard[-1].request_id == "free" and heard[-1].finish is FinishReason.LENGTH
    engine.scheduler.check()
    with pytest.raises(ArmillaryError):
        engine.submit(Request("before the jump", (1,), 1, expires=2000.0))


def test_an_honest_clock_is_told_as_it_is() -> None:
    clock = VirtualClock(0.1)
    steady = SteadyTime(clock)
    for seconds in (0.1, 0.2, 0.7):
        clock.advance(seconds)
        assert steady.peek() == steady.read() == clock.now()


def test_entries_of_requests_that_ended_do_not_pile_up() -> None:
    alive: set[str] = set()
    deadlines = Deadlines(lambda request: request.id in alive)
    for number in range(10_000):
        alive = {f"r{i}" for i in range(number - 20, number + 1)}
        deadlines.enter(Request(f"r{number}", (1,), 1, expires=1000.0 - number % 7))
        assert len(deadlines) <= 64 + 2 * 64
    assert {request.id for request in deadlines.due(2000.0)} == alive


def test_the_queue_knows_what_waits_for_whom() -> None:
    """Against adding up anew, through admissions, preemptions, cancellations and forks."""
    for seed in range(20):
        rnd = random.Random(seed)
        client = Client(random_config(rnd))
        seen = 0
        for number in range(60):
            owner = rnd.choice(["", "a", "b"])
            client.submit(replace(random_request(rnd, f"r{number}", 0.0), owner=owner))
            if rnd.random() < 0.2:
                client.cancel(f"r{rnd.randrange(number + 1)}", rnd.choice([None, 0]), FinishReason.CANCELLED)
            client.step()
            queue = client.scheduler.waiting
            waiting = [s for ss in client.scheduler._alive.values() for s in ss if not s.running]
            for owner, share in [(None, queue.load.total), *((o, queue.load.of(o)) for o in ("", "a", "b"))]:
                mine = [s for s in waiting if owner is None or s.request.owner == owner]
                assert share.requests == len(mine)
                assert share.choices == sum(1 + s.forks for s in mine)
                assert share.tokens == sum(len(s.tokens) for s in mine)
                seen += len(mine) > 1
        client.finish()
        assert client.scheduler.waiting.load.owners() == {}
    assert seen > 20


def test_the_queue_is_bounded_in_tokens_too() -> None:
    client = Client(replace(WIDE, max_running=1, max_waiting_tokens=20))
    client.submit(Request("runs", (1,), 40))
    client.step()
    assert client.submit(Request("a", (1,) * 12, 1)) and client.submit(Request("b", (1,) * 8, 1))
    refusal = client.refuse(Request("c", (1,), 1))
    assert isinstance(refusal, Refused) and refusal.code is Code.QUEUE_FULL and refusal.reason == "queue_tokens"
    assert "20 tokens are waiting" in refusal.message and "at most 20" in refusal.message
    client.cancel("b", None, FinishReason.CANCELLED)
    assert client.submit(Request("c", (1,), 1))
    client.finish()
    assert client.submit(Request("longer than the limit", (1,) * 30, 1)), "an empty queue takes any request that fits"
    client.finish()


def test_the_time_to_work_off_a_queue_grows_with_the_queue() -> None:
    pace, stats = Pace(), SchedulerStats()
    assert seconds_to_work_off(Share(3, 3, 100), stats, pace) is None, "no guess before there is a pace"
    pace.observe(0.5, 100)
    assert seconds_to_work_off(Share(3, 3, 100), stats, pace) == 0.5
    assert seconds_to_work_off(Share(6, 6, 300), stats, pace) == 1.5
    stats.generated_tokens = 60
    stats.finished[FinishReason.STOP] = 3
    assert seconds_to_work_off(Share(6, 6, 300), stats, pace) == (300 + 6 * 20) / 200
    load = QueueLoad()
    load.enter("a", 2, 10)
    load.enter("b", 1, 5)
    load.leave("a", 2, 10)
    assert repr(load.total) == repr(load.of("b")) == "Share(1, 1, 5)" and load.of("a").requests == 0


def test_a_journal_with_another_time_is_another_life() -> None:
    """The replay ends requests by what it reads, not by what it is told was ended."""
    lines, client = busy(3, faults=False)
    name = next(name for (name, _), choice in client.choices.items() if choice.finish is FinishReason.DEADLINE)
    place = next(i for i, line in enumerate(lines) if json.loads(line).get("submit") == name)
    fields = json.loads(lines[place])
    fields["expires"] = None
    lines[place] = json.dumps(fields, separators=(",", ":"))
    assert replay(lines) != lines
