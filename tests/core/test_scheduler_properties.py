"""Whatever arrives, is cancelled or fails: budgets hold, blocks come back, and tokens are those of a run alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from armillary.core.config import SchedulerConfig
from armillary.core.request import FinishReason, Request, Sequence
from armillary.core.scheduler import Scheduler
from armillary.core.step import Step
from core_model import FAULTS, Client, Violation, random_config, random_request

REASONS = (FinishReason.CANCELLED, FinishReason.STOP)


class Watched(Scheduler):
    """Counts a rare path that leaves no other trace."""

    gave_way = 0

    def _free_one(self, sequence: Sequence, step: Step, now: float) -> bool:
        freed = super()._free_one(sequence, step, now)
        self.gave_way += not freed
        return freed


def random_life(
    seed: int, scheduler: type[Scheduler] = Watched, faults: bool = False, cancels: bool = True, requests: int = 24
) -> tuple[Client, Counter[str]]:
    """One engine's life from the first request to the last, and how often each rare state was met."""
    rnd = random.Random(seed)
    fault_rnd = random.Random(seed + 1)

    def fault(step: Step) -> str | None:
        return fault_rnd.choice(FAULTS) if fault_rnd.random() < 0.1 else None

    client = Client(random_config(rnd), fault if faults else None, scheduler)
    met: Counter[str] = Counter()
    names = []
    for _ in range(120):
        if len(names) < requests and rnd.random() < 0.45:
            names.append(f"r{len(names)}")
            client.submit(random_request(rnd, names[-1], client.clock.now()))
        if cancels and names and rnd.random() < 0.15:
            name = rnd.choice(names)
            for sequence in client.scheduler._alive.get(name, ()):
                met["cancelled while waiting"] += not sequence.running and not sequence.generated
                met["cancelled while preempted"] += not sequence.running and sequence.admitted_length > 0
                met["cancelled while running"] += sequence.running
                met["cancelled before the split"] += sequence.forks > 0
            client.cancel(name, rnd.choice([None, 0, 0, 1, 2, 7]), rnd.choice(REASONS))
        if rnd.random() < 0.1:
            client.clock.advance(rnd.random())
        client.step()
    client.finish()
    stats = client.scheduler.stats
    met.update(client.executor.seen)
    met.update(preemptions=stats.preemptions, hits=stats.prefix_hit_tokens, evictions=stats.evictions)
    met.update(refused=client.refused, **{"gave way": getattr(client.scheduler, "gave_way", 0)})
    return client, met


def test_random_lives() -> None:
    met: Counter[str] = Counter()
    for seed in range(150):
        met += random_life(seed)[1]
    for path in (
        "preemptions", "copies", "hits", "evictions", "gave way", "chunks", "forks", "refused",
        "cancelled while waiting", "cancelled while preempted", "cancelled while running", "cancelled before the split",
    ):  # fmt: skip
        assert met[path] >= 10, f"the rare path {path!r} was hardly taken: {met}"


def test_random_lives_with_failures() -> None:
    met: Counter[str] = Counter()
    for seed in range(1000, 1100):
        met += random_life(seed, faults=True)[1]
    for fault in FAULTS:
        assert met[fault] >= 10, f"the fault {fault!r} hardly occurred: {met}"


@pytest.mark.slow
def test_many_random_lives() -> None:
    for seed in range(10_000, 10_300):
        random_life(seed, faults=seed % 3 == 0, requests=40)


def test_everything_ends_by_itself() -> None:
    """Without cancellations and failures every choice is the one generated alone, to its end."""
    for seed in range(2000, 2060):
        client, _ = random_life(seed, cancels=False)
        assert not client.cancelled
        assert {c.finish for c in client.choices.values()} <= {FinishReason.STOP, FinishReason.LENGTH}


# ------------------------------------------------------------------ the same, with the moves chosen by hypothesis


class SchedulerLife(RuleBasedStateMachine):
    """Hypothesis looks for a short sequence of moves that breaks a promise."""

    def __init__(self) -> None:
        super().__init__()
        self.fault: str | None = None
        self.serial = 0

    @initialize(seed=st.integers(0, 10_000))
    def begin(self, seed: int) -> None:
        self.client = Client(random_config(random.Random(seed)), lambda step: self.fault)

    @rule(seed=st.integers(0, 10_000))
    def submit(self, seed: int) -> None:
        self.serial += 1
        self.client.submit(random_request(random.Random(seed), f"r{self.serial}", self.client.clock.now()))

    @rule(steps=st.integers(1, 6))
    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.client.step()

    @rule(fault=st.sampled_from(FAULTS))
    def fail(self, fault: str) -> None:
        self.fault = fault
        self.client.step()
        self.fault = None

    @precondition(lambda self: self.serial)
    @rule(data=st.data(), index=st.sampled_from([None, 0, 1, 2]), reason=st.sampled_from(REASONS))
    def cancel(self, data: st.DataObject, index: int | None, reason: FinishReason) -> None:
        self.client.cancel(f"r{data.draw(st.integers(1, self.serial))}", index, reason)

    @precondition(lambda self: self.serial)
    @rule(data=st.data(), index=st.sampled_from([None, 0, 1]))
    def cancel_during_a_step(self, data: st.DataObject, index: int | None) -> None:
        """Between choosing a step and taking its result in, as a driver other than `Engine` may."""
        client = self.client
        scheduler, now = client.scheduler, client.clock.now()
        step = scheduler.next_step(now)
        if step is not None:
            result = client.executor.run(step)
            client.cancel(f"r{data.draw(st.integers(1, self.serial))}", index, FinishReason.CANCELLED)
            client._hear(scheduler.commit(step, result, now + 0.01, now))
            client.clock.advance(0.01)

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.2, 50.0]))
    def wait(self, seconds: float) -> None:
        self.client.clock.advance(seconds)

    @invariant()
    def accounts_balance(self) -> None:
        if hasattr(self, "client"):
            self.client.scheduler.check()

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self.client.finish()


TestSchedulerLife = SchedulerLife.TestCase
TestSchedulerLife.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# ------------------------------------------------------------------ schedulers that are wrong must be caught


class NoCopyOnWrite(Scheduler):
    def _own_tail(self, sequence: Sequence, step: Step, now: float) -> bool:
        sequence.shares_tail = False
        return True


class StealsABlock(Scheduler):
    """Makes room by taking one block from the last in order, who goes on as if it still had it."""

    def _free_one(self, sequence: Sequence, step: Step, now: float) -> bool:
        if self.pool.free_count == 0:
            victim = self._last_in_order(self.running, now)
            self.pool.release((victim.blocks[0],), self.index.indexed)
        return True


class ForgetsTokens(Scheduler):
    def _preempt(self, sequence: Sequence, step: Step, now: float) -> None:
        super()._preempt(sequence, step, now)
        del sequence.tokens[sequence.prompt_length :]


class KeepsTheCount(Scheduler):
    """Preempts without counting the computed tokens back to zero."""

    def _preempt(self, sequence: Sequence, step: Step, now: float) -> None:
        computed = sequence.computed
        super()._preempt(sequence, step, now)
        sequence.computed = computed


class IndexesTooEarly(Scheduler):
    """Lets others find a prompt's blocks when they are allocated, before they are computed."""

    def admit(self, step: Step, budget: int, now: float) -> int:
        left = super().admit(step, budget, now)
        for s in step.admitted:
            if s.running:
                full = (len(s.tokens) - 1) // self.config.block_size
                self.index.extend_chain(s.chain, full, s.blocks, s.tokens, s.digests, s.request.identity)
        return left


class LosesTheFailed(Scheduler):
    def fail(self, step: Step, failures: Mapping[int, str], now: float) -> list:
        return super().fail(step, failures, now)[:-1]


@pytest.mark.parametrize(
    "broken", [NoCopyOnWrite, StealsABlock, ForgetsTokens, KeepsTheCount, IndexesTooEarly, LosesTheFailed]
)
def test_a_broken_scheduler_is_caught(broken: type[Scheduler]) -> None:
    caught = 0
    for seed in range(40):
        try:
            random_life(seed, broken, faults=broken is LosesTheFailed)
        except (Violation, AssertionError, RuntimeError, ValueError, KeyError, IndexError):
            caught += 1
    assert caught >= 5


# ------------------------------------------------------------------ equality, one axis at a time


BASE = SchedulerConfig(num_blocks=64, max_context=40, block_size=4, max_step_tokens=64, max_running=8)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prefix_cache": False},
        {"max_chunk_tokens": 1},
        {"max_chunk_tokens": 3},
        {"max_step_tokens": 8},
        {"num_blocks": 10},
        {"num_blocks": 10, "prefix_cache": False},
        {"preempt_every": 1},
        {"preempt_every": 2, "max_chunk_tokens": 3, "num_blocks": 11},
        {"max_running": 4},
        {"block_size": 1, "num_blocks": 40},
        {"block_size": 8, "num_blocks": 6},
        {"order": "priority"},
        {"order": "deadline", "num_blocks": 10, "starvation_s": 0.05},
    ],
    ids=str,
)
def test_tokens_depend_on_no_setting(changes: dict[str, object]) -> None:
    rnd = random.Random(7)
    client = Client(replace(BASE, **changes), scheduler=Watched)  # type: ignore[arg-type]
    for i in range(30):
        assert client.submit(random_request(rnd, f"r{i}", 0.0))
    client.finish()  # compares every choice with the one generated alone
    stats = client.scheduler.stats
    if changes.get("preempt_every") or changes.get("num_blocks") == 10:
        assert stats.preemptions > 0
    if changes.get("prefix_cache", True):
        assert stats.prefix_hit_tokens > 0
    else:
        assert stats.prefix_hit_tokens == 0
    if "max_chunk_tokens" in changes:
        assert client.executor.seen["chunks"] > 0


# ------------------------------------------------------------------ single cases worth a name


def request(name: str, prompt: int = 6, max_tokens: int = 4, **more: object) -> Request:
    return Request(name, tuple(i % 2 for i in range(prompt)), max_tokens, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_one_choice_is_cancelled_before_the_choices_are_split(index: int) -> None:
    client = Client(replace(BASE, max_chunk_tokens=2))
    client.submit(request("a", n=3))
    client.step()
    assert client.scheduler.running[0].forks == 2
    client.cancel("a", index, FinishReason.CANCELLED)
    client.cancel("a", index, FinishReason.STOP)  # ended already: nothing happens
    client.finish()
    tokens = [len(client.choices["a", i].tokens) for i in range(3)]
    assert tokens == [0 if i == index else 4 for i in range(3)]


def test_every_choice_is_cancelled_alone_before_the_split() -> None:
    client = Client(replace(BASE, max_chunk_tokens=2))
    client.submit(request("a", n=3))
    client.step()
    for index in (1, 0, 2):
        client.cancel("a", index, FinishReason.CANCELLED)
    assert client.engine.idle and client.scheduler.pool.used_count == 0
    client.finish()


def test_choices_outnumber_what_fits_at_once() -> None:
    """Four choices of a request that fills the pool alone still all end, one after the other if need be."""
    client = Client(SchedulerConfig(num_blocks=5, max_context=20, block_size=4, max_running=4, max_step_tokens=8))
    client.submit(request("a", prompt=7, max_tokens=13, n=4))
    client.finish()
    assert client.scheduler.stats.preemptions >= 3


def test_a_forced_preemption_lets_everything_finish() -> None:
    client = Client(replace(BASE, preempt_every=1, prefix_cache=False, max_chunk_tokens=1))
    for i in range(4):
        client.submit(request(f"r{i}", prompt=20, max_tokens=10))
    client.finish()
    assert client.scheduler.stats.preemptions > 10


@pytest.mark.parametrize(("chunk", "steps"), [(None, 1), (8, 2), (4, 3)])
def test_a_blocked_head_is_admitted_when_enough_of_its_prefix_is_computed_by_another(
    chunk: int | None, steps: int
) -> None:
    """Two long equal prompts of which only one fits: the second must not wait for the first to end."""
    config = SchedulerConfig(14, 64, block_size=4, max_step_tokens=64, max_running=4, max_chunk_tokens=chunk)
    client = Client(config)
    client.submit(request("a", prompt=32, max_tokens=12))
    client.submit(request("b", prompt=32, max_tokens=4))
    for number in range(1, steps + 1):
        client.step()
        assert client.scheduler.running_count == 1 + (number == steps)
    client.finish()


class LooksAgain(Scheduler):
    """Without the shortcut for a head of the queue that did not fit."""

    def admit(self, step: Step, budget: int, now: float) -> int:
        self.blocked = None
        return super().admit(step, budget, now)


def test_the_shortcut_for_a_blocked_head_changes_no_decision() -> None:
    blocked = 0
    for seed in range(50):
        journals: list[list[str]] = []
        for scheduler in (Scheduler, LooksAgain):
            rnd = random.Random(seed)
            journals.append([])
            client = Client(random_config(rnd), scheduler=scheduler, journal=journals[-1].append)
            for i in range(60):
                if i < 30:
                    client.submit(random_request(rnd, f"r{i}", client.clock.now()))
                if i % 7 == 0:
                    client.cancel(f"r{rnd.randrange(i + 1)}", rnd.choice([None, 0, 1]), FinishReason.CANCELLED)
                client.step()
                blocked += client.scheduler.blocked is not None
            client.finish()
        assert journals[0] == journals[1]
    assert blocked > 500


def test_cached_tokens_are_those_of_the_first_admission() -> None:
    """What a request finds of its own after a preemption was not cached for it when it came."""
    config = replace(BASE, max_chunk_tokens=4)
    client = Client(config)
    client.submit(request("a", prompt=20, max_tokens=1))
    client.step()
    client.step()
    step = Step(0, [])
    client.scheduler._preempt(client.scheduler.running[0], step, 0.0)
    heard = []
    hear = client.engine.sink
    client.engine.sink = lambda events: (heard.extend(events), hear(events))[1]
    client.finish()
    assert client.scheduler.stats.prefix_hit_tokens == 8
    assert [event.cached for event in heard] == [0]


def test_a_waiting_request_is_never_forgotten() -> None:
    """`next_step` offers work whenever somebody waits and nobody runs, whatever was blocked before."""
    for seed in range(300):
        rnd = random.Random(seed)
        client = Client(replace(random_config(rnd), num_blocks=10))
        for i in range(4):
            client.submit(random_request(rnd, f"r{i}", 0.0))
        while client.engine.idle is False:
            for sequence in list(client.scheduler.running):
                if rnd.random() < 0.2:
                    client.cancel(sequence.request.id, sequence.index, FinishReason.CANCELLED)
            if not client.engine.idle:
                assert client.step()
