"""Leaps: whatever is taken in one comes out as if it had been taken step by step, to the byte and to the block."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.core.clock import VirtualClock
from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.formation import Formation, Marcher
from armillary.core.journal import Journal, expand
from armillary.core.leap import Leap
from armillary.core.request import FinishReason, Request, Sequence
from armillary.core.scheduler import Scheduler
from armillary.core.snapshot import take_snapshot
from armillary.core.step import Event, Step, StepResult
from armillary.errors import ArmillaryError

CALM = SchedulerConfig(num_blocks=64, max_context=64, block_size=4, max_running=4)

Input = tuple[float, Request | tuple[str, int | None]]
"""When it comes, and what: a request, or a cancellation."""


class Drawn:
    """An executor that predicts: durations and pauses are drawn, one pair a step, in order."""

    def __init__(self, seed: int) -> None:
        self._rnd = random.Random(seed)
        self._known: tuple[float, float] | None = None

    def _draw(self) -> tuple[float, float]:
        return self._rnd.expovariate(100.0), self._rnd.choice([0.0, 0.003, 0.02])

    def token_of(self, sequence: Sequence) -> int:
        return _token(sequence, 0)

    def foresee(self, sequences: int, context: int) -> tuple[float, float]:
        return self._draw()

    def join(self, sequences: int, context: int, step: Step) -> StepResult:
        return self.run(step)

    def put_back(self, times: tuple[float, float]) -> None:
        self._known = times

    def run(self, step: Step) -> StepResult:
        duration, pause = self._known or self._draw()
        self._known = None
        tokens = [_token(entry.sequence, row) for entry in step.entries for row in range(entry.rows)]
        return StepResult(tokens, duration=duration, pause=pause)


def _token(sequence: Sequence, row: int) -> int:
    """Few different ones, so that requests go on alike and share what they generate."""
    return (len(sequence.request.prompt) + sequence.index + row) % 3


@dataclass
class Lived:
    lines: list[str]
    heard: list[tuple[Any, ...]]
    engine: Engine
    leaps: list[Leap]
    takes: int
    """Leaps in whose first step a newcomer took what another one computed."""

    @property
    def state(self) -> dict[str, Any]:
        """Everything that a later decision could depend on."""
        scheduler = self.engine.scheduler
        return {
            "free": scheduler.pool.free_order(),
            "holders": scheduler.pool.holder_counts(),
            "index": [link and (link.digest, link.tokens) for link in scheduler.index.links()],
            "running": [_shape(s) for s in scheduler.running],
            "waiting": scheduler.waiting_count,
            "stats": scheduler.stats,
            "pace": (scheduler.pace.seconds_per_step, scheduler.pace.tokens_per_step),
            "slots": scheduler.slots,
            "now": self.engine.clock.now(),
        }


def _shape(s: Sequence) -> tuple[Any, ...]:
    return (s.request.id, s.index, s.computed, tuple(s.tokens), tuple(s.blocks), len(s.chain), s.cached)


def enter(engine: Engine, clock: VirtualClock, moment: float, what: Any) -> None:
    """Hand an input over at its moment, or later where steps have gone on beyond it."""
    if clock.now() < moment < inf:
        clock.advance_to(moment)
    if isinstance(what, Request):
        try:
            engine.submit(what)
        except ArmillaryError:
            pass
    elif what is not None:
        engine.cancel(*what)


def live(config: SchedulerConfig, inputs: list[Input], seed: int, leap: bool, end: float = inf) -> Lived:
    """Each input is handed over when the first step that begins at or after its time could begin."""
    lines: list[str] = []
    heard: list[tuple[Any, ...]] = []
    leaps: list[Leap] = []
    takes: list[bool] = []
    clock = VirtualClock()

    def hear(events: list[Event]) -> None:
        heard.extend((e.request_id, e.index, e.token, e.finish, e.cached) for e in events)

    def leapt(taken: Leap) -> None:
        leaps.append(taken)
        takes.append(_takes(taken))
        for number in range(len(taken)):
            hear(taken.events(number))

    engine = Engine(Scheduler(config), Drawn(seed), clock, hear, Journal(lines.append), leapt=leapt)
    for moment, what in [*inputs, (end, None)]:
        while clock.now() < moment and (engine.leap(moment) if leap else engine.step()):
            engine.scheduler.check()
        enter(engine, clock, moment, what)
    engine.settle()
    return Lived(lines, heard, engine, leaps, sum(takes))


def expanded(lines: list[str]) -> list[str]:
    return [step for line in lines for step in expand(line)]


def equal(config: SchedulerConfig, inputs: list[Input], seed: int, end: float = inf) -> tuple[Lived, Lived]:
    plain, leaping = (live(config, inputs, seed, leap, end) for leap in (False, True))
    assert expanded(leaping.lines) == plain.lines
    assert leaping.heard == plain.heard
    assert leaping.state == plain.state
    return plain, leaping


def workload(rnd: random.Random, config: SchedulerConfig) -> list[Input]:
    """Bursts and pauses, prompts that begin alike, times that end, cancellations, now and then several choices."""
    inputs: list[Input] = []
    now = 0.0
    for number in range(rnd.randint(1, 14)):
        now += rnd.choice([0.0, rnd.random() * 0.02, rnd.random() * 0.5])
        prompt = tuple([rnd.randrange(2)] * rnd.randint(1, 14) + [rnd.randrange(3) for _ in range(rnd.randint(0, 5))])
        request = Request(
            f"r{number}",
            prompt,
            max_tokens=rnd.randint(1, 40 - len(prompt)),
            n=rnd.choice([1, 1, 1, 1, 1, 2]),
            stop_ids=frozenset({9}) if rnd.random() < 0.03 else frozenset(),
            priority=rnd.randrange(3),
            deadline=now + rnd.random() if rnd.random() < 0.5 else None,
            expires=now + rnd.random() * 0.6 if rnd.random() < 0.25 else None,
            reuse_prefix=rnd.random() < 0.9,
            hold=False,
        )
        inputs.append((now, request))
        if rnd.random() < 0.15:
            inputs.append((now + rnd.random() * 0.3, (f"r{number}", rnd.choice([None, 0]))))
    return sorted(inputs, key=lambda entry: entry[0])


def machine(rnd: random.Random) -> SchedulerConfig:
    running = rnd.choice([1, 2, 4, 6])
    return SchedulerConfig(
        num_blocks=rnd.randint(10, 40),
        max_context=40,
        block_size=rnd.choice([1, 2, 4, 4, 4, 8]),
        max_step_tokens=rnd.choice([running, 9, 64]) if running < 9 else 64,
        max_chunk_tokens=rnd.choice([None, 3]),
        max_running=running,
        order=rnd.choice(["fcfs", "priority", "deadline"]),
        starvation_s=rnd.choice([0.05, 30.0]),
        prefix_cache=rnd.random() < 0.85,
        preempt_every=rnd.choice([0] * 9 + [4]),
    )


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_leaping_changes_nothing(seed: int) -> None:
    rnd = random.Random(seed)
    config = machine(rnd)
    equal(config, workload(rnd, config), seed, end=rnd.choice([inf, rnd.random()]))


def test_leaps_are_met_by_everything_that_must_end_them() -> None:
    """The random lives above are worth something only if these happen in them."""
    met: Counter[str] = Counter()
    for seed in range(120):
        rnd = random.Random(seed)
        config = machine(rnd)
        plain, leaping = equal(config, workload(rnd, config), seed)
        records = [json.loads(line) for line in leaping.lines]
        leaps = [r for r in records if "leap" in r]
        met["leaps"] += len(leaps)
        met["long"] += sum(len(r["times"]) > 3 for r in leaps)
        met["boundaries"] += sum(len(r["times"]) > config.block_size for r in leaps)
        met["ended"] += sum(bool(r["ended"]) for r in leaps)
        met["several ended"] += sum(len(r["ended"]) > 1 for r in leaps)
        met["while others wait"] += sum(_waits(records, r) for r in leaps)
        for before, after in zip(records, records[1:], strict=False):
            if "leap" in before:
                met[f"then {next(iter(after))}"] += 1
                met["then preempted"] += bool(after.get("preempted"))
                met["then late"] += any(reason == "deadline" for *_, reason in after.get("ended", ()))
        met["evictions"] += plain.engine.scheduler.stats.evictions
        met["with newcomers"] += sum(leap.step is not None and len(leap) > 1 for leap in leaping.leaps)
        met["with prompts that go on"] += sum(_goes_on(leap) for leap in leaping.leaps)
        met["beside who marches already"] += sum(_passed(leap) for leap in leaping.leaps)
        met["hits"] += plain.engine.scheduler.stats.prefix_hit_tokens
    for what in (
        "leaps", "long", "boundaries", "ended", "several ended", "while others wait", "then submit", "then cancel",
        "then step", "then expire", "then preempted", "then late", "with newcomers", "evictions",
        "hits", "with prompts that go on", "beside who marches already",
    ):  # fmt: skip
        assert met[what] > 10, (what, met)


def test_newcomers_take_from_each_other_in_the_first_step_of_a_leap() -> None:
    takes = 0
    for seed in range(30):
        rnd = random.Random(seed)
        config = SchedulerConfig(rnd.randint(16, 40), 40, block_size=4, max_step_tokens=64, max_running=6)
        now, inputs = 0.0, [(0.0, Request("long", (1,), 38))]
        for burst in range(6):
            now += rnd.random() * 0.1
            for copy in range(rnd.randint(1, 4)):
                prompt = (burst + 2,) * rnd.randint(6, 12) + (copy,)
                inputs.append((now, Request(f"r{burst}-{copy}", prompt, rnd.randint(2, 8))))
        _, leaping = equal(config, list[Input](inputs), seed)
        takes += leaping.takes
    assert takes > 20


def _takes(leap: Leap) -> bool:
    """Whether a newcomer has taken what another one computed in the same step."""
    step = leap.step
    return step is not None and any(
        entry is not other and not set(links).isdisjoint(other.sequence.chain)
        for entry, links in step.announced
        for other in step.entries
    )


def _goes_on(leap: Leap) -> bool:
    """Whether a prompt that had begun before is computed further in its first step."""
    return leap.step is not None and any(
        entry.sequence not in leap.step.admitted and entry.count > 1 for entry in leap.step.entries
    )


def _passed(leap: Leap) -> bool:
    """Whether somebody gets one token beside the marchers, because a prompt before it is still being computed."""
    return leap.step is not None and any(
        entry.sequence not in leap.step.admitted and entry.start >= entry.sequence.prompt_length
        for entry in leap.step.entries
    )


def _waits(records: list[dict[str, Any]], leap: dict[str, Any]) -> bool:
    seen = records[: records.index(leap)]
    submitted = {r["submit"] for r in seen if "submit" in r}
    ended = {name for r in seen for name, *_ in (*r.get("ended", ()), *r.get("expire", ()))}
    ended |= {r["cancel"] for r in seen if "cancel" in r}
    return bool(submitted - ended - {name for name, *_ in leap["run"]})


# ------------------------------------------------------------------ leaps that go wrong, and are caught


def _ignores_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    init = Marcher.__init__

    def wrong(self: Marcher, sequence: Sequence, taken: int, number: int, token: int, size: int) -> None:
        init(self, sequence, taken, number, token, size)
        self.end += 1

    monkeypatch.setattr(Marcher, "__init__", wrong)


def _ignores_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaps do; at the end of a step it is looked who is due all the same."""

    def end_due(self: Engine, now: float) -> list[Event]:
        due = self._deadlines.due(now)
        return [event for r in due for event in self.scheduler.cancel(r.id, None, FinishReason.DEADLINE)]

    monkeypatch.setattr(Engine, "_end_due", end_due)
    monkeypatch.setattr("armillary.core.deadlines.Deadlines.next", inf)


def _ignores_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armillary.core.queue.WaitingQueue.changes_at", inf)


def _ignores_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armillary.core.leap._may_admit", lambda scheduler: False)


def _ignores_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = Formation.fits
    monkeypatch.setattr(Formation, "fits", lambda self: fits(self) or True)


def _ignores_who_does_not_march(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose prompt goes on gets nothing until the marchers have ended."""
    join_all = Formation.join_all

    def wrong(self: Formation, sequences: list[Sequence]) -> list[Marcher]:
        joined = join_all(self, sequences)
        self.others = []
        return joined

    monkeypatch.setattr(Formation, "join_all", wrong)


def _ignores_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Formation, "_enter", lambda self, marcher: None)


def _ignores_the_formation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others find counts that have stayed behind."""
    monkeypatch.setattr(Formation, "halt", lambda self: None)


@pytest.mark.parametrize(
    "spoil",
    [
        _ignores_ends,
        _ignores_deadlines,
        _ignores_the_queue,
        _ignores_the_pool,
        _ignores_who_does_not_march,
        _ignores_fills,
        _ignores_the_formation,
    ],  # fmt: skip
)
def test_a_leap_too_far_is_noticed(
    spoil: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch)
    noticed = 0
    for seed in range(150):
        rnd = random.Random(seed)
        config = machine(rnd)
        try:
            equal(config, workload(rnd, config), seed)
        except (AssertionError, IndexError, RuntimeError, ValueError):
            noticed += 1
        if noticed == 3:
            return
    raise AssertionError(f"noticed in {noticed} lives only")


def test_a_leap_does_not_pass_over_a_change_of_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of the queue finds no room; who waits behind it would, and comes first in time."""
    config = SchedulerConfig(16, 64, block_size=4, max_running=4, order="priority", starvation_s=0.1)
    inputs: list[Input] = [
        (0.0, Request("running", (1,) * 24, 36)),
        (0.0, Request("small", (2,) * 4, 4, priority=5)),
        (0.0, Request("large", (0,) * 44, 4, priority=0)),
    ]
    plain, leaping = equal(config, inputs, 1)
    order = [name for line in map(json.loads, plain.lines) for name, *_ in line.get("admitted", ())]
    assert order == ["running", "small", "large"] and leaping.leaps
    _ignores_the_order(monkeypatch)
    with pytest.raises(AssertionError):
        equal(config, inputs, 1)


def test_who_splits_off_and_is_gone_before_the_next_step_has_not_run() -> None:
    most = set()
    for seed in range(40):
        two = Request("two", (1, 2, 3, 0), 9, n=2)
        inputs: list[Input] = [(0.0, Request("r", (2, 2), 40)), (0.05, two), (0.06, ("two", 1))]
        plain, _ = equal(CALM, inputs, seed)
        most.add(plain.engine.scheduler.stats.max_running)
    assert most == {2, 3}


# ------------------------------------------------------------------ what stays behind, and what is certain


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_steps_that_are_certain_come(seed: int) -> None:
    """Until then the same sequences take one token each: nobody ends, gives way or is admitted."""
    rnd = random.Random(seed)
    config = replace(machine(rnd), preempt_every=0)
    lines: list[str] = []
    promises: list[tuple[int, int]] = []
    clock = VirtualClock()
    engine = Engine(Scheduler(config), Drawn(seed), clock, lambda events: None, Journal(lines.append))
    for moment, what in [*workload(rnd, config), (inf, None)]:
        while clock.now() < moment and engine.leap(moment):
            promises.append((len(lines), engine.scheduler.stats.steps + engine.certain_steps()))
        enter(engine, clock, moment, what)
    for first, promised in promises:
        runs = set()
        for record in map(json.loads, expanded(lines[first:])):
            if "step" not in record or record["step"] >= promised:
                break
            assert not (record["ended"] or record["preempted"] or record["admitted"])
            runs.add(tuple((name, index, count) for name, index, _, count in record["run"]))
        assert len(runs) <= 1


def test_something_is_certain() -> None:
    engine = Engine(Scheduler(CALM), Drawn(0), VirtualClock(), lambda events: None)
    assert engine.certain_steps() == 0
    for name, tokens in (("r", 30), ("s", 12)):
        engine.submit(Request(name, (1, 2, 3), tokens))
    engine.step()
    engine.leap(engine.now() + 1e-9)
    assert engine.certain_steps() == 12 - 2 - 1  # two tokens are known, and the last step ends it
    engine.submit(Request("t", (1,), 3))
    assert engine.certain_steps() == 0


def test_where_blocks_may_run_out_less_is_certain() -> None:
    config = SchedulerConfig(num_blocks=6, max_context=20, block_size=4, max_running=2)
    engine = Engine(Scheduler(config), Drawn(0), VirtualClock(), lambda events: None)
    for name in "rs":
        engine.submit(Request(name, (1, 2), 18))
    engine.step()
    engine.leap(engine.now() + 1e-9)
    assert engine.scheduler.pool.free_count == 4
    assert engine.certain_steps() == 8


def test_a_snapshot_between_leaps_is_that_of_single_steps() -> None:
    told = []
    for leap in (False, True):
        engine = Engine(Scheduler(CALM), Drawn(3), VirtualClock(), lambda events: None)
        for name in "rs":
            engine.submit(Request(name, (1, 2, 3), 40))
        while engine.now() < 0.2:
            if leap:
                engine.leap(0.2)
            else:
                engine.step()
        snapshot = take_snapshot(engine, 10, 10)
        assert {s.computed_tokens for s in snapshot.sequences} == {engine.scheduler.stats.steps + 2}
        told.append(replace(snapshot, kept=[link and link.digest for link in snapshot.kept]))  # type: ignore[misc]
    assert told[0] == told[1]


# ------------------------------------------------------------------ the seams


def test_a_long_run_is_one_line_and_reads_as_its_steps() -> None:
    plain, leaping = equal(CALM, [(0.0, Request("r", (1, 2, 3), 30)), (0.0, Request("s", (2,), 40))], 1)
    assert [next(iter(json.loads(line))) for line in leaping.lines] == [
        "scheduler", "submit", "submit", "step", "leap", "leap",
    ]  # fmt: skip
    assert len(plain.lines) == 3 + 40
    assert all(expand(line) == [line] for line in plain.lines)


def test_without_a_hearer_of_leaps_the_sink_hears_every_step() -> None:
    news: list[list[tuple[str, FinishReason | None]]] = []
    engine = Engine(
        Scheduler(CALM),
        Drawn(0),
        VirtualClock(),
        lambda events: news.append([(e.request_id, e.finish) for e in events]),
    )
    engine.submit(Request("r", (1,), 5))
    while engine.leap():
        pass
    assert news == [[("r", None)]] * 4 + [[("r", FinishReason.LENGTH)]]


def test_an_executor_without_foresight_and_an_engine_that_keeps_steps_do_not_leap() -> None:
    class Plain:
        def run(self, step: Step) -> StepResult:
            return StepResult([1] * sum(entry.rows for entry in step.entries), duration=0.01)

    from armillary.core.recent import Recent

    for executor, recent in ((Plain(), None), (Drawn(0), Recent(10))):
        lines: list[str] = []
        engine = Engine(Scheduler(CALM), executor, VirtualClock(), lambda e: None, Journal(lines.append), recent)
        engine.submit(Request("r", (1,), 5))
        while engine.leap():
            pass
        assert sum("step" in json.loads(line) for line in lines) == 5


@pytest.mark.parametrize("times", [(-1.0, 0.0), (inf, 0.0), (0.1, float("nan")), (0.1, -0.1)])
def test_times_that_are_none_are_refused(times: tuple[float, float]) -> None:
    class Wrong(Drawn):
        def foresee(self, sequences: int, context: int) -> tuple[float, float]:
            return times

    engine = Engine(Scheduler(CALM), Wrong(0), VirtualClock(), lambda events: None)
    engine.submit(Request("r", (1,), 9))
    engine.step()
    with pytest.raises(ValueError, match="0 or more seconds"):
        engine.leap()


def test_nothing_begins_at_or_after_the_time_given() -> None:
    engine = Engine(Scheduler(CALM), Drawn(3), VirtualClock(), lambda events: None, Journal(lambda line: None))
    taken: list[Leap] = []
    engine.leapt = taken.append
    engine.submit(Request("r", (1,), 60))
    engine.step()
    engine.leap(engine.now() + 0.1)
    assert taken[0].times[-1][0] < 0.1 + taken[0].times[0][0] and len(taken[0]) > 2
    assert engine.now() >= taken[0].times[0][0] + 0.1 and not taken[0].over


@pytest.mark.slow
def test_leaping_changes_nothing_in_many_lives() -> None:
    for seed in range(10_000, 10_600):
        rnd = random.Random(seed)
        config = machine(rnd)
        equal(replace(config, num_blocks=rnd.choice([config.num_blocks, 11])), workload(rnd, config), seed)
