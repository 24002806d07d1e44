"""The engine's thread: what is accepted ends exactly once, whatever callers, callbacks and executors do."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from armillary.core.engine import Engine
from armillary.core.journal import Journal
from armillary.core.request import FinishReason, Request
from armillary.core.step import Event, Step
from armillary.errors import ArmillaryError, Code
from armillary.runtime.load import lines_to
from armillary.runtime.worker import EngineWorker
from fake_engine import FakeExecutor, fake_engine

LONG = 30.0
"""Seconds after which a wait counts as a hang."""


class Listener:
    """Keeps the events of one request and knows when all its choices have ended."""

    def __init__(self, n: int = 1) -> None:
        self.n = n
        self.events: list[Event] = []
        self.done = threading.Event()

    def __call__(self, events: list[Event]) -> None:
        self.events.extend(events)
        if len(self.finishes) >= self.n:
            self.done.set()

    @property
    def finishes(self) -> list[tuple[int, FinishReason]]:
        return [(event.index, event.finish) for event in self.events if event.finish is not None]

    @property
    def tokens(self) -> list[int]:
        return [event.token for event in self.events if event.token is not None]

    def wait(self) -> list[FinishReason]:
        assert self.done.wait(LONG), "the request did not end"
        assert sorted(index for index, _ in self.finishes) == list(range(self.n)), "each choice must end once"
        return [reason for _, reason in sorted(self.finishes)]


class Gate:
    """Holds the executor in its step until opened."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def __call__(self, step: Step) -> None:
        assert self.open.wait(LONG)


@pytest.fixture
def workers() -> Iterator[list[EngineWorker]]:
    made: list[EngineWorker] = []
    yield made
    for worker in made:
        worker.stop(0.2)


def start(workers: list[EngineWorker], executor: FakeExecutor | None = None, **settings: Any) -> EngineWorker:
    workers.append(EngineWorker(fake_engine(executor or FakeExecutor(), **settings)))
    return workers[-1]


def request(name: str, max_tokens: int = 4, **more: Any) -> Request:
    return Request(**{"id": name, "prompt": (1, 2, 3), "max_tokens": max_tokens, **more})


def settle(worker: EngineWorker) -> None:
    """Every block free, nobody pending, by the engine's own accounting."""
    assert worker.drain(LONG)
    worker.call(lambda engine: engine.scheduler.check()).result(LONG)
    stats = worker.stats()
    assert (stats.open_requests, stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0, 0)


def test_tokens_and_one_finish(workers: list[EngineWorker]) -> None:
    worker = start(workers, FakeExecutor(rule=lambda name, index, generated: 10 * index + generated))
    listener = Listener(n=3)
    worker.submit(request("a", 5, n=3), listener)
    assert listener.wait() == [FinishReason.LENGTH] * 3
    for index in range(3):
        assert [e.token for e in listener.events if e.index == index] == [10 * index + g for g in range(5)]
    settle(worker)
    assert worker.stats().counters.finished[FinishReason.LENGTH] == 3


def test_an_idle_engine_takes_no_step_and_wakes_for_work(workers: list[EngineWorker]) -> None:
    executor = FakeExecutor()
    worker = start(workers, executor)
    for round_ in range(3):
        listener = Listener()
        worker.submit(request(f"r{round_}"), listener)
        listener.wait()
        steps = executor.steps
        time.sleep(0.05)
        assert executor.steps == steps
        assert worker.progress == 0.0


def test_refusals_reach_the_caller(workers: list[EngineWorker]) -> None:
    gate = Gate()
    executor = FakeExecutor(before=gate)
    worker = start(workers, executor, max_waiting=2, max_running=1, num_blocks=16)
    codes = {}
    cases = {
        "long": request("long", 200),
        "empty": request("empty", prompt=()),
        "big": request("big", 60, prompt=(1,) * 20),
    }
    for name, bad in cases.items():
        with pytest.raises(ArmillaryError) as caught:
            worker.submit(bad, Listener())
        codes[name] = caught.value.code
    assert codes == {"long": Code.CONTEXT_LENGTH, "empty": Code.INVALID_REQUEST, "big": Code.CANNOT_FIT}

    listeners = [Listener() for _ in range(3)]
    worker.submit(request("first"), listeners[0])
    assert executor.entered.wait(LONG)
    waiting = [worker.submit_soon(request(f"w{i}"), listeners[1 + i]) for i in range(2)]
    refused = worker.submit_soon(request("w2"), Listener())
    assert refused.done(), "a full queue is refused without waiting for the step"
    with pytest.raises(ArmillaryError) as caught:
        refused.result()
    assert caught.value.code is Code.QUEUE_FULL
    gate.open.set()
    for future in waiting:
        future.result(LONG)
    for listener in listeners:
        assert listener.wait() == [FinishReason.LENGTH]
    settle(worker)


def test_a_duplicate_id_is_refused_and_the_first_goes_on(workers: list[EngineWorker]) -> None:
    gate = Gate()
    worker = start(workers, FakeExecutor(before=gate))
    first, second = Listener(), Listener()
    accepted = worker.submit_soon(request("same"), first)
    doubled = worker.submit_soon(request("same"), second)
    gate.open.set()
    accepted.result(LONG)
    with pytest.raises(ArmillaryError) as caught:
        doubled.result(LONG)
    assert caught.value.code is Code.INVALID_REQUEST
    assert first.wait() == [FinishReason.LENGTH] and second.events == []


def test_cancel_in_every_state(workers: list[EngineWorker]) -> None:
    gate = Gate()
    executor = FakeExecutor(before=gate)
    worker = start(workers, executor, max_running=2)
    running, waiting, queued = Listener(2), Listener(), Listener()
    worker.submit(request("running", 100, n=2), running)
    assert executor.entered.wait(LONG)
    futures = [worker.submit_soon(request("waiting", 100), waiting), worker.submit_soon(request("queued", 100), queued)]
    worker.cancel("queued")
    worker.cancel("waiting")
    worker.cancel("running")
    worker.cancel("unknown")
    gate.open.set()
    for future in futures:
        future.result(LONG)
    assert running.wait() == [FinishReason.CANCELLED] * 2
    assert waiting.wait() == queued.wait() == [FinishReason.CANCELLED]
    worker.cancel("running")
    settle(worker)


def test_a_stop_from_the_listener_ends_one_choice_before_the_next_step(workers: list[EngineWorker]) -> None:
    worker = start(workers)
    listener = Listener(2)

    def on_events(events: list[Event]) -> None:
        listener(events)
        if any(event.index == 0 and event.token is not None for event in events):
            worker.cancel("a", 0, FinishReason.STOP)

    worker.submit(request("a", 6, n=2), on_events)
    assert listener.wait() == [FinishReason.STOP, FinishReason.LENGTH]
    assert len([e for e in listener.events if e.index == 0 and e.token is not None]) == 1
    settle(worker)


def test_a_listener_that_raises_loses_only_its_own_request(workers: list[EngineWorker]) -> None:
    worker = start(workers)
    calls = []

    def broken(events: list[Event]) -> None:
        calls.append(events)
        raise RuntimeError("listener")

    other = Listener()
    worker.submit(request("broken", 50), broken)
    worker.submit(request("other", 20), other)
    assert other.wait() == [FinishReason.LENGTH]
    settle(worker)
    assert len(calls) == 1
    assert worker.alive
    assert worker.stats().counters.finished[FinishReason.CANCELLED] == 1


def test_a_step_that_raises_fails_its_requests_only(workers: list[EngineWorker]) -> None:
    def before(step: Step) -> None:
        if any(entry.sequence.request.id == "bad" for entry in step.entries):
            raise RuntimeError("kernel")

    worker = start(workers, FakeExecutor(before=before))
    bad, good = Listener(), Listener()
    worker.submit(request("bad"), bad)
    assert bad.wait() == [FinishReason.ERROR] and "kernel" in (bad.events[-1].error or "")
    worker.submit(request("good"), good)
    assert good.wait() == [FinishReason.LENGTH]
    settle(worker)


def test_submit_from_a_listener(workers: list[EngineWorker]) -> None:
    worker = start(workers)
    second, problems = Listener(), []

    def first(events: list[Event]) -> None:
        if events[-1].finish is not None:
            worker.submit_soon(request("second"), second)
            try:
                worker.submit(request("third"), Listener())
            except RuntimeError as error:
                problems.append(error)

    worker.submit(request("first"), first)
    assert second.wait() == [FinishReason.LENGTH]
    assert len(problems) == 1
    settle(worker)


def test_call_runs_between_steps_and_passes_results_and_errors(workers: list[EngineWorker]) -> None:
    worker = start(workers)
    assert worker.call(lambda engine: threading.current_thread().name).result(LONG) == "engine"
    assert isinstance(worker.call(lambda engine: engine).result(LONG), Engine)
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda engine: 1 // 0).result(LONG)
    assert worker.alive


# ---------------------------------------------------------------- the end


def test_drain_finishes_what_was_accepted_and_refuses_the_rest(workers: list[EngineWorker]) -> None:
    gate = Gate()
    worker = start(workers, FakeExecutor(before=gate))
    listener = Listener()
    worker.submit(request("a"), listener)
    assert not worker.drain(0.01)
    assert not worker.accepting and worker.alive
    with pytest.raises(ArmillaryError) as caught:
        worker.submit(request("b"), Listener())
    assert caught.value.code is Code.UNAVAILABLE
    gate.open.set()
    assert worker.drain(LONG)
    assert listener.wait() == [FinishReason.LENGTH]


def test_stop_leaves_nothing_pending(workers: list[EngineWorker]) -> None:
    gate = Gate()
    executor = FakeExecutor(before=gate)
    worker = start(workers, executor, max_running=2)
    engine = worker.call(lambda engine: engine).result(LONG)
    listeners = {f"r{i}": Listener(2) for i in range(5)}
    for name, listener in listeners.items():
        worker.submit_soon(request(name, 100, n=2), listener)
    assert executor.entered.wait(LONG)
    late_listener = Listener()
    late = worker.submit_soon(request("late", 100), late_listener)
    called: Future[None] = worker.call(lambda engine: None)
    threading.Timer(0.05, gate.open.set).start()
    worker.stop(LONG)
    outcomes = []
    for listener in listeners.values():
        reasons = listener.wait() if listener.events else []
        outcomes.append(reasons)
    accepted = [r for r in outcomes if r]
    assert all(r == [FinishReason.ERROR] * 2 for r in accepted) and accepted
    for future in (late, called):
        with pytest.raises(ArmillaryError) as caught:
            future.result(LONG)
        assert caught.value.code is Code.UNAVAILABLE
    assert late_listener.events == []
    assert not worker.alive and worker.failure is None
    assert engine.idle and engine.scheduler.pool.used_count == 0
    worker.stop()
    for refused in (worker.submit_soon(request("x"), Listener()), worker.call(lambda engine: None)):
        with pytest.raises(ArmillaryError):
            refused.result(LONG)
    assert worker.drain(LONG)


def test_a_hung_executor_shows_in_progress_and_stop_still_answers_everybody(workers: list[EngineWorker]) -> None:
    gate = Gate()
    executor = FakeExecutor(before=gate)
    worker = start(workers, executor)
    hung, late_listener = Listener(2), Listener()
    worker.submit(request("hung", 9, n=2), hung)
    assert executor.entered.wait(LONG)
    late = worker.submit_soon(request("late"), late_listener)
    before = worker.progress
    time.sleep(0.05)
    assert worker.progress >= before + 0.05
    assert worker.alive
    worker.stop(0.05)
    assert hung.wait() == [FinishReason.ERROR] * 2
    with pytest.raises(ArmillaryError):
        late.result(LONG)
    gate.open.set()  # the thread comes back to life and finds that everything was answered
    worker._thread.join(LONG)
    assert hung.wait() == [FinishReason.ERROR] * 2 and late_listener.events == []


def test_progress_restarts_with_each_step(workers: list[EngineWorker]) -> None:
    seen: list[float] = []
    entered: list[float] = []
    holder: list[EngineWorker] = []

    def before(step: Step) -> None:
        entered.append(time.monotonic())
        time.sleep(0.005)
        seen.append(holder[0].progress)
        entered[-1], previous = time.monotonic(), entered[-2] if len(entered) > 1 else 0.0
        assert 0.005 <= seen[-1] <= entered[-1] - previous, "it counts from the end of the step before"

    worker = start(workers, FakeExecutor(before=before))
    holder.append(worker)
    listener = Listener()
    worker.submit(request("a", 10), listener)
    assert listener.wait() == [FinishReason.LENGTH]
    assert len(seen) == 10


def test_the_death_of_the_thread_answers_everybody_and_keeps_the_reason(workers: list[EngineWorker]) -> None:
    gate = Gate()
    executor = FakeExecutor(before=gate)
    worker = start(workers, executor)
    pending, deaf = Listener(2), Listener()
    worker.submit(request("pending", 50, n=2), pending)
    assert executor.entered.wait(LONG)

    def broken(*args: object) -> None:
        raise RuntimeError("the books do not balance")

    queued = worker.submit_soon(request("queued"), deaf)
    worker._engine.scheduler.commit = broken  # type: ignore[method-assign]
    gate.open.set()
    assert pending.wait() == [FinishReason.ERROR] * 2
    assert "the books do not balance" in (pending.events[-1].error or "")
    with pytest.raises(ArmillaryError) as caught:
        queued.result(LONG)
    assert caught.value.code is Code.ENGINE_FAILED
    assert not worker.alive and "the books do not balance" in (worker.failure or "")
    with pytest.raises(ArmillaryError) as caught:
        worker.submit(request("after"), Listener())
    assert caught.value.code is Code.ENGINE_FAILED
    assert worker.progress == 0.0


class FullDisk:
    """A file that takes some lines."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.asked = 0

    def write(self, line: str) -> int:
        self.asked += 1
        if self.asked > self.room:
            raise OSError("disk full")
        return len(line)


@pytest.mark.parametrize("room", [0, 1, 4], ids=["at once", "at the first request", "in a step"])
def test_a_journal_that_cannot_be_written_is_given_up(
    workers: list[EngineWorker], caplog: pytest.LogCaptureFixture, room: int
) -> None:
    disk = FullDisk(room)
    engine = fake_engine(FakeExecutor())
    journal = Journal(lines_to(disk, Path("journal.jsonl")))
    engine = Engine(engine.scheduler, engine.executor, engine.clock, engine.sink, journal)
    worker = EngineWorker(engine)
    workers.append(worker)
    listener = Listener()
    worker.submit(request("a", 20), listener)
    assert listener.wait() == [FinishReason.LENGTH]
    assert worker.alive and disk.asked == room + 1, "it is not tried again"
    assert [record.message for record in caplog.records if "journal" in record.message] == [
        "the journal journal.jsonl ends here, because it cannot be written: disk full"
    ]
    settle(worker)


# ---------------------------------------------------------------- storm


@pytest.mark.parametrize("seed", range(3))
def test_storm(workers: list[EngineWorker], seed: int) -> None:
    """Many threads submit, cancel and break at random moments: all ends once, all blocks come back."""
    chance = random.Random(seed)
    worker = start(
        workers,
        FakeExecutor(before=lambda step: time.sleep(0.0002)),
        num_blocks=24,
        max_running=6,
        max_waiting=40,
        max_step_tokens=16,
        max_chunk_tokens=5,
        preempt_every=7,
    )
    results: list[tuple[Request, Listener, str]] = []
    lock = threading.Lock()

    def client(number: int) -> None:
        own = random.Random(seed * 1000 + number)
        for turn in range(12):
            n = own.choice([1, 1, 2, 3])
            prompt = tuple(own.randrange(2) for _ in range(own.randint(1, 14)))
            wanted = request(f"{number}-{turn}", own.randint(1, 12), n=n, prompt=prompt)
            listener = Listener(n)
            action = own.choice(["wait", "cancel", "cancel one", "cancel at once", "break"])

            def on_events(events: list[Event], listener: Listener = listener, action: str = action) -> None:
                listener(events)
                if action == "break" and len(listener.events) > 2:
                    raise RuntimeError("listener")

            future = worker.submit_soon(wanted, on_events)
            if action == "cancel at once":
                worker.cancel(wanted.id)
            try:
                future.result(LONG)
            except ArmillaryError as error:
                assert error.code is Code.QUEUE_FULL
                with lock:
                    results.append((wanted, listener, "refused"))
                continue
            if action.startswith("cancel"):
                time.sleep(own.random() * 0.01)
                worker.cancel(wanted.id, 0 if action == "cancel one" else None)
            if own.random() < 0.5 and action != "break":
                listener.wait()
            with lock:
                results.append((wanted, listener, action))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    chance.shuffle(threads)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert len(results) == 16 * 12
    settle(worker)
    stats = worker.stats().counters
    ended = 0
    for wanted, listener, action in results:
        if action == "refused":
            assert listener.events == []
        elif action == "break":
            ended += wanted.n
            indices = [index for index, _ in listener.finishes]
            assert len(indices) == len(set(indices))
        else:
            listener.wait()
            ended += wanted.n
            per_choice = [[e for e in listener.events if e.index == i] for i in range(wanted.n)]
            assert all(events[-1].finish is not None for events in per_choice)
            assert all(sum(e.token is not None for e in events) <= wanted.max_tokens for events in per_choice)
    assert sum(stats.finished.values()) == ended
    assert stats.preemptions > 0 and stats.finished[FinishReason.CANCELLED] > 0 and stats.prefix_hit_tokens > 0
    assert worker.alive and worker.failure is None


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_told_that_the_thread_stayed_behind(workers: list[EngineWorker]) -> None:
    gate = Gate()
    worker = start(workers, FakeExecutor(before=gate))
    worker.submit(request("parent"), listener := Listener())
    with worker._wake:  # held by somebody who is not there after the fork
        child = os.fork()
        if child == 0:
            codes = []
            for ask in (lambda: worker.submit(request("child"), Listener()), worker.call(len).result):
                try:
                    ask()
                except ArmillaryError as error:
                    codes.append(error.code is Code.ENGINE_FAILED and "forked" in error.message)
            worker.stop(0.1)
            os._exit(0 if codes == [True, True] and not worker.alive else 1)
    gate.open.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert listener.wait() == [FinishReason.LENGTH], "the parent goes on"
