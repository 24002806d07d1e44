"""The engine: what is told, when, how often; and what happens to a request in every state when it is cancelled."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from armillary.core.clock import VirtualClock
from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.request import FinishReason, Request
from armillary.core.scheduler import Scheduler
from armillary.core.step import Event, Step, StepResult
from armillary.errors import Code
from core_model import CheckedExecutor, Client, alone, random_config, random_request

CONFIG = SchedulerConfig(num_blocks=12, max_context=40, block_size=4, max_step_tokens=16, max_running=4, max_waiting=3)


def request(name: str = "a", prompt: int = 6, max_tokens: int = 4, **more: object) -> Request:
    return Request(name, tuple(i % 2 for i in range(prompt)), max_tokens, **more)  # type: ignore[arg-type]


# ------------------------------------------------------------------ events


def test_tokens_come_in_order_and_the_last_one_carries_the_finish() -> None:
    heard: list[Event] = []
    engine = Engine(Scheduler(CONFIG), CheckedExecutor(CONFIG), VirtualClock(), heard.extend)
    engine.submit(request())
    engine.run_until_idle()
    expected, reason = alone(request(), 0)
    assert [event.token for event in heard] == expected
    assert [event.finish for event in heard] == [None, None, None, reason]
    assert {(event.request_id, event.index) for event in heard} == {("a", 0)}
    assert not engine.step() and engine.idle


def test_a_stop_token_is_reported_and_waits_for_min_tokens() -> None:
    class Same:
        def run(self, step: Step) -> StepResult:
            return StepResult([2] * sum(entry.rows for entry in step.entries))

    for least, most, length, reason in ((0, 9, 1, "stop"), (1, 9, 1, "stop"), (3, 9, 3, "stop"), (9, 4, 4, "length")):
        heard: list[Event] = []
        engine = Engine(Scheduler(CONFIG), Same(), VirtualClock(), heard.extend)
        engine.submit(request(max_tokens=most, min_tokens=least, stop_ids=frozenset([2])))
        engine.run_until_idle()
        assert [event.token for event in heard] == [2] * length
        assert heard[-1].finish == reason


def test_details_reach_their_rows() -> None:
    class Detailed(CheckedExecutor):
        def run(self, step: Step) -> StepResult:
            result = super().run(step)
            result.details = [
                (entry.sequence.request.id, entry.sequence.index + row, len(entry.sequence.tokens))
                for entry in step.entries
                for row in range(entry.rows)
            ]
            result.prompt_details = {entry.sequence.request.id: "prompt" for entry in step.entries if entry.rows}
            return result

    heard: list[Event] = []
    engine = Engine(Scheduler(CONFIG), Detailed(CONFIG), VirtualClock(), heard.extend)
    engine.submit(request("a", n=3))
    engine.submit(request("b", prompt=9))
    engine.run_until_idle()
    count: dict[tuple[str, int], int] = {}
    for event in heard:
        key = (event.request_id, event.index)
        known = (6 if event.request_id == "a" else 9) + count.get(key, 0)
        assert event.detail == (*key, known)
        assert event.prompt_detail == ("prompt" if event.index == 0 and key not in count else None)
        count[key] = count.get(key, 0) + 1
    assert count == {("a", 0): 4, ("a", 1): 4, ("a", 2): 4, ("b", 0): 4}


def test_cached_tokens_are_told_with_the_first_token() -> None:
    client = Client(CONFIG)
    heard: list[Event] = []
    hear = client.engine.sink
    client.engine.sink = lambda events: (heard.extend(events), hear(events))[1]
    for name in ("a", "b"):
        client.submit(request(name, prompt=10))
        client.finish()
    assert [event.cached for event in heard] == [0, 0, 0, 0, 8, 0, 0, 0]


def test_a_request_may_ask_for_its_prompt_to_be_computed() -> None:
    client = Client(CONFIG)
    client.submit(request("a", prompt=10))
    client.finish()
    client.submit(request("b", prompt=10, reuse_prefix=False))
    client.finish()
    assert client.scheduler.stats.prefix_hit_tokens == 0
    client.submit(request("c", prompt=10))
    client.finish()
    assert client.scheduler.stats.prefix_hit_tokens == 8


# ------------------------------------------------------------------ cancellation


def at_state(state: str) -> Client:
    """A client whose request "a" is in the named state, beside a neighbour."""
    client = Client(replace(CONFIG, max_chunk_tokens=4, max_running=4))
    if state == "waiting":
        client.submit(request("z", prompt=30, max_tokens=4))
        client.step()
    client.submit(request("a", prompt=12, max_tokens=8, n=2))
    client.submit(request("b", prompt=3, max_tokens=8))
    match state:
        case "just submitted" | "waiting":
            pass
        case "prefill":
            client.step()
            assert client.scheduler.running[0].computed < 12
        case "decode":
            for _ in range(4):
                client.step()
            assert client.choices["a", 1].tokens
        case "preempted":
            for _ in range(4):
                client.step()
            victim = next(s for s in client.scheduler.running if s.request.id == "a" and s.index == 1)
            client.scheduler._preempt(victim, Step(0, []), 0.0)
        case "ended":
            client.finish()
    return client


STATES = ("just submitted", "waiting", "prefill", "decode", "preempted", "ended")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("index", [None, 0, 1])
@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.STOP])
def test_cancelling_frees_at_once_in_every_state(state: str, index: int | None, reason: FinishReason) -> None:
    client = at_state(state)
    client.cancel("a", index, reason)
    if index is None:
        held = {b for s in client.scheduler.running for b in s.blocks}
        assert not any(s.request.id == "a" for s in client.scheduler.running)
        assert client.scheduler.pool.used_count == len(held)
        assert "a" not in client.scheduler._alive
    client.cancel("a", index, reason)
    client.cancel("nobody", index, reason)
    client.finish()
    assert client.choices["b", 0].finish is FinishReason.LENGTH
    if state != "ended":
        assert all(client.choices["a", i].finish == reason for i in (range(2) if index is None else [index]))


def test_an_id_may_be_used_again_after_its_end() -> None:
    client = Client(CONFIG)
    for _ in range(3):
        assert client.submit(request("a"))
        client.step()
        client.cancel("a", None, FinishReason.CANCELLED)
        client.choices.clear()
        client.requests.clear()
    assert client.engine.idle and client.scheduler.pool.used_count == 0


def test_a_storm_of_cancellations_leaves_nothing_behind() -> None:
    for seed in range(20):
        rnd = random.Random(seed)
        client = Client(replace(random_config(rnd), max_waiting=100))
        for i in range(40):
            client.submit(random_request(rnd, f"r{i}", 0.0))
        for _ in range(rnd.randrange(12)):
            client.step()
        for i in rnd.sample(range(40), 40):
            client.cancel(f"r{i}", None, FinishReason.CANCELLED)
            if rnd.random() < 0.2:
                client.step()
        assert client.engine.idle
        assert client.scheduler.pool.used_count == client.scheduler.running_count == client.scheduler.waiting_count == 0
        client.finish()


# ------------------------------------------------------------------ failures


def test_a_step_that_fails_takes_nobody_else_along() -> None:
    config = replace(CONFIG, max_running=2)
    client = Client(config, lambda step: "raise" if step.index == 2 else None)
    for name in "abc":
        client.submit(request(name))
    client.finish()
    finishes = {name: client.choices[name, 0].finish for name in "abc"}
    assert finishes == {"a": FinishReason.ERROR, "b": FinishReason.ERROR, "c": FinishReason.LENGTH}


def test_an_entry_that_fails_takes_nobody_else_along() -> None:
    client = Client(CONFIG, lambda step: "entries" if step.index == 2 else None)
    for name in "abc":
        client.submit(request(name))
    client.finish()
    assert [client.choices[name, 0].finish for name in "abc"] == ["error", "length", "error"]


@pytest.mark.parametrize("fault", ["rows", "details", "types", "negative", "nothing", "backwards"])
def test_a_malformed_result_is_a_failed_step_and_changes_nothing_else(fault: str) -> None:
    client = Client(CONFIG, lambda step: fault if step.index == 1 else None)
    client.submit(request("a"))
    client.submit(request("b"))
    client.finish()
    assert [client.choices[name, 0].finish for name in "ab"] == ["error", "error"]
    assert [len(client.choices[name, 0].tokens) for name in "ab"] == [1, 1]
    client.submit(request("c"))
    client.finish()
    assert client.choices["c", 0].finish is FinishReason.LENGTH


def test_an_interrupt_is_not_a_failed_step() -> None:
    class Interrupted:
        def run(self, step: Step) -> StepResult:
            raise KeyboardInterrupt

    engine = Engine(Scheduler(CONFIG), Interrupted(), VirtualClock(), lambda events: None)
    engine.submit(request())
    with pytest.raises(KeyboardInterrupt):
        engine.step()


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("wrong", "code", "param", "figures"),
    [
        (request(prompt=0), Code.INVALID_REQUEST, None, ("0 prompt tokens",)),
        (request(max_tokens=-3), Code.INVALID_REQUEST, None, ("max_tokens -3",)),
        (request(n=0), Code.INVALID_REQUEST, None, ("n 0",)),
        (request(n=5), Code.INVALID_REQUEST, "n", ("4", "5")),
        (request(prompt=40), Code.CONTEXT_LENGTH, "prompt", ("maximum context length is 40 tokens", "40 prompt", "44")),
        (request(prompt=39), Code.CONTEXT_LENGTH, "max_tokens", ("is 40 tokens", "39 prompt", "43 in all")),
        (request(max_tokens=10**30), Code.CONTEXT_LENGTH, "max_tokens", ("is 40 tokens", str(10**30))),
        (replace(request(), prompt=(1, -1)), Code.INVALID_REQUEST, "prompt", ("0 to 2**32 - 1",)),
        (replace(request(), prompt=(1, 2**32)), Code.INVALID_REQUEST, "prompt", ("0 to 2**32 - 1",)),
        (replace(request(), prompt=(1, 10**30)), Code.INVALID_REQUEST, "prompt", ("0 to 2**32 - 1",)),
        (replace(request(), prompt=(1, 0.5)), Code.INVALID_REQUEST, "prompt", ("0 to 2**32 - 1",)),
        (replace(request(), prompt=(1, None)), Code.INVALID_REQUEST, "prompt", ("0 to 2**32 - 1",)),
        (request(deadline=float("nan")), Code.INVALID_REQUEST, "deadline", ("nan",)),
        (request(deadline=float("inf")), Code.INVALID_REQUEST, "deadline", ("inf",)),
    ],
    ids=lambda value: "" if isinstance(value, (Request, tuple)) else str(value),
)
def test_what_is_refused_says_why(wrong: Request, code: Code, param: str | None, figures: tuple[str, ...]) -> None:
    client = Client(CONFIG)
    refusal = client.refuse(wrong)
    assert (refusal.code, refusal.param) == (code, param)
    for figure in figures:
        assert figure in refusal.message
    assert client.engine.idle and client.scheduler.stats.refused == 1 and client.scheduler.waiting_count == 0
    client.scheduler.check()


def test_what_can_never_fit_is_refused_with_the_largest_that_would() -> None:
    config = replace(CONFIG, num_blocks=5, max_context=1000)
    client = Client(config)
    refusal = client.refuse(request(prompt=6, max_tokens=16))
    assert refusal.code is Code.CANNOT_FIT
    assert "need 6 KV blocks, and the pool has 5" in refusal.message and refusal.message.endswith("at most 21")
    client.submit(request(prompt=6, max_tokens=15))  # 21 in all: the last token needs no place
    client.finish()
    assert len(client.choices["a", 0].tokens) == 15


def test_a_full_queue_refuses_with_both_figures_and_recovers() -> None:
    client = Client(CONFIG)
    for i in range(3):
        client.submit(request(f"r{i}"))
    refusal = client.refuse(request("late"))
    assert (refusal.code, refusal.message) == (Code.QUEUE_FULL, "3 requests are waiting and at most 3 may")
    client.step()
    assert client.submit(request("late"))
    client.finish()


def test_an_id_that_is_alive_cannot_be_used_twice() -> None:
    client = Client(CONFIG)
    client.submit(request("a"))
    refusal = client.refuse(request("a"))
    assert (refusal.code, refusal.param) == (Code.INVALID_REQUEST, "id")
    client.finish()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_blocks": 0},
        {"block_size": 0},
        {"max_context": 0},
        {"max_running": 0},
        {"max_waiting": 0},
        {"max_step_tokens": 3},
        {"max_chunk_tokens": 0},
        {"starvation_s": 0.0},
        {"starvation_s": float("inf")},
        {"starvation_s": float("nan")},
        {"preempt_every": -1},
    ],
    ids=str,
)
def test_an_impossible_configuration_is_refused_with_its_value(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="given") as caught:
        replace(CONFIG, **changes)  # type: ignore[arg-type]
    assert next(iter(changes)) in str(caught.value)


# ------------------------------------------------------------------ the clock


def test_virtual_time_passes_only_when_told() -> None:
    clock = VirtualClock(5.0)
    assert clock.now() == 5.0
    clock.advance(0.25)
    assert clock.now() == 5.25
    clock.advance(0.0)
    clock.advance_to(0.1 + 0.2 + 6.0)
    assert clock.now() == 0.1 + 0.2 + 6.0
    clock.advance_to(clock.now())


@pytest.mark.parametrize("seconds", [-1e-9, float("nan"), float("inf"), -float("inf")])
def test_a_clock_never_goes_backwards(seconds: float) -> None:
    clock = VirtualClock(1.0)
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(seconds)
    with pytest.raises(ValueError, match="at or after"):
        clock.advance_to(seconds if seconds != -1e-9 else 1.0 - 1e-9)
    assert clock.now() == 1.0


def test_predicted_durations_move_a_virtual_clock() -> None:
    class Predicts:
        def run(self, step: Step) -> StepResult:
            return StepResult([0] * sum(entry.rows for entry in step.entries), duration=0.5)

    clock = VirtualClock()
    engine = Engine(Scheduler(CONFIG), Predicts(), clock, lambda events: None)
    engine.submit(request(max_tokens=4))
    engine.run_until_idle()
    assert clock.now() == 2.0
    assert engine.scheduler.pace.seconds_per_step == 0.5


# ------------------------------------------------------------------ a journal that cannot be written


class FullDisk:
    def __init__(self) -> None:
        self.full = False

    def __call__(self, line: str) -> None:
        if self.full:
            raise OSError("no space left on device")


def test_events_are_delivered_although_the_journal_cannot_be_written() -> None:
    disk = FullDisk()
    client = Client(CONFIG, journal=disk)
    client.submit(request("a", max_tokens=1))
    client.submit(request("b", max_tokens=3))
    disk.full = True
    with pytest.raises(OSError, match="no space"):
        client.step()
    assert client.choices["a", 0].finish is FinishReason.LENGTH
    with pytest.raises(OSError, match="no space"):
        client.engine.cancel("b")
    assert client.choices["b", 0].finish is FinishReason.CANCELLED
    with pytest.raises(OSError, match="no space"):
        client.engine.submit(request("c"))
    assert client.engine.idle and client.scheduler.pool.used_count == 0
    disk.full = False
    client.submit(request("d"))
    while client.step():
        pass
    assert client.choices["d", 0].finish is FinishReason.LENGTH
