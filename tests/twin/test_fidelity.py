"""What the real engine decided, the twin decides: journals of the bundled model under load, lived again."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from typing import Any

import pytest

from armillary.cli.main import run
from armillary.core.config import SchedulerConfig
from armillary.core.request import Request, Sequence
from armillary.core.scheduler import Scheduler
from armillary.core.step import Event
from armillary.deployment.engine import EngineSettings
from armillary.errors import ArmillaryError, Code
from armillary.measure.journal import read_journal
from armillary.models.locate import locate
from armillary.runtime.load import build_engine
from armillary.runtime.sampling import SamplingParams
from armillary.runtime.worker import EngineWorker
from armillary.twin.compare import BEFORE, Life, compare, tell
from armillary.twin.replay import replay


class Client:
    """One request: it may cancel itself when it has heard so many tokens."""

    def __init__(self, worker: EngineWorker, request: Request, cancel_after: int | None) -> None:
        self.worker, self.request, self.cancel_after = worker, request, cancel_after
        self.tokens = self.finished = 0
        self.done = Flag()

    def hear(self, events: list[Event]) -> None:
        self.tokens += sum(event.token is not None for event in events)
        self.finished += sum(event.finish is not None for event in events)
        if self.finished == self.request.n:
            self.done.set()
        elif self.cancel_after is not None and self.tokens >= self.cancel_after:
            self.cancel_after = None
            self.worker.cancel(self.request.id, 0 if self.request.n > 1 else None)


def load(worker: EngineWorker, now: Callable[[], float], rnd: random.Random) -> None:
    """A burst against a pool that is far too small; then the stragglers."""
    prefix = tuple(rnd.randrange(20, 1000) for _ in range(21))
    clients = []
    for number in range(40):
        own = tuple(rnd.randrange(20, 1000) for _ in range(rnd.randint(1, 30)))
        request = Request(
            f"r{number}",
            (prefix + own) if number % 3 else own,
            max_tokens=rnd.randint(8, 40),
            n=2 if number % 7 == 1 else 1,
            priority=rnd.randrange(3),
            deadline=None if number % 2 else now() + rnd.random(),
            # Some soon and some late, so that on a fast machine as on a slow one some of them run out of time.
            expires=now() + (0.004, 0.0005)[number // 4 % 2] * number if number % 4 == 3 else None,
            sampling=SamplingParams(temperature=0.7, seed=number),
        )
        client = Client(worker, request, cancel_after=4 if number % 5 == 2 else None)
        try:
            worker.submit_soon(request, client.hear).result(60)
        except ArmillaryError as refusal:
            assert refusal.code is Code.DEADLINE
        else:
            clients.append(client)
    for client in clients:
        assert client.done.wait(120)


@pytest.fixture(scope="module", params=["fcfs", "priority", "deadline"])
def journal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journal of a real engine, with its wall clock, its thread, its kernels and its sampler."""
    path = tmp_path_factory.mktemp("twin") / f"{request.param}.jsonl"
    settings = EngineSettings(
        kv_blocks=40, block_size=4, max_context=128, max_running=8, max_step_tokens=24, max_chunk_tokens=9,
        order=request.param, starvation_s=0.2, journal=path, threads=1,
    )  # fmt: skip
    loaded = build_engine(locate("isles"), settings, lambda events: None)
    worker = EngineWorker(loaded.engine)
    try:
        load(worker, loaded.engine.now, random.Random(7))
    finally:
        worker.stop()
        loaded.release()
    return path


def met(lines: list[str]) -> Counter[str]:
    seen: Counter[str] = Counter()
    for record in map(json.loads, lines[1:]):
        seen[next(iter(record))] += 1
        seen["preempted"] += len(record.get("preempted", ()))
        seen["copies"] += len(record.get("copies", ()))
        seen["hits"] += sum(found > 0 for *_, found in record.get("admitted", ()))
        seen["missed"] += sum(reason == "deadline" for *_, reason in record.get("ended", ()))
        told = {(name, index) for name, index, _ in record.get("tokens", ())}
        seen["chunks"] += sum((name, index) not in told for name, index, _, count in record.get("run", ()) if count > 1)
    seen["missed"] += seen["expire"]
    return seen


def test_the_twin_of_a_real_engine_writes_its_journal_byte_for_byte(journal: Path) -> None:
    (life,) = read_journal(journal)
    seen = met(life.lines)
    for what in ("submit", "step", "cancel", "missed", "preempted", "hits", "chunks", "copies"):
        assert seen[what] > 0, f"the load did not bring about what it is for: {what}, {seen}"
    assert replay(life.lines) == life.lines
    found = compare(life, Life(1, replay(life.lines)))
    assert found.identical and found.share == 1.0 and found.steps == seen["step"] and found.divergence is None


class Youngest(Scheduler):
    """Takes blocks from whoever came last instead of whoever is last in the order."""

    def _last_in_order(self, sequences: list[Sequence], now: float) -> Sequence:
        return sequences[0]


def unlucky(config: SchedulerConfig) -> Scheduler:
    return Youngest(config)


def impatient(config: SchedulerConfig) -> Scheduler:
    return Scheduler(replace(config, max_chunk_tokens=8))


def forgetful(config: SchedulerConfig) -> Scheduler:
    return Scheduler(replace(config, prefix_cache=False))


@pytest.mark.parametrize("altered", [unlucky, impatient, forgetful])
def test_another_policy_shows_where_it_decides_otherwise(
    journal: Path, altered: Callable[[SchedulerConfig], Scheduler]
) -> None:
    (life,) = read_journal(journal)
    found = compare(life, Life(1, replay(life.lines, altered)))
    assert not found.identical and found.divergence is not None and 0 < found.share < 1
    divergence = found.divergence
    assert divergence.differs and len(divergence.before) == min(BEFORE, divergence.step)
    assert all(a != b for a, b in divergence.differs.values())
    text = tell(found, ("real", "other"))
    assert f"step {divergence.step} " in text and "other" in text and "waiting" in text


def test_the_command_says_how_much_is_equal(journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_and_status(["compare", str(journal)], 0)
    assert "both decided the same (100 %). The journals are equal byte for byte." in capsys.readouterr().out
    (life,) = read_journal(journal)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(line + "\n" for line in replay(life.lines, impatient)))
    run_and_status(["compare", str(journal), str(other)], 1)
    assert "The first that differs is step" in capsys.readouterr().out
    run_and_status(["compare", str(journal), str(other), "--json"], 1)
    (told,) = json.loads(capsys.readouterr().out)
    assert told["share"] < 1 and told["divergence"]["requests"] is not None and not told["identical"]


def run_and_status(arguments: list[str], status: int) -> None:
    try:
        run(arguments)
    except SystemExit as end:
        assert (end.code or 0) == status
    else:
        assert status == 0


# ------------------------------------------------------------------ files that are no journals


def test_several_lives_in_one_file_and_a_last_line_that_breaks_off(tmp_path: Path) -> None:
    lines = _small()
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(line + "\n" for line in [*lines, *lines]) + lines[1][:20])
    lives = read_journal(path)
    assert [life.first for life in lives] == [1, len(lines) + 1]
    assert [life.unfinished for life in lives] == [False, True]
    assert all(replay(life.lines, first=life.first) == lines for life in lives)


def test_a_journal_with_leaps_reads_as_its_steps(tmp_path: Path) -> None:
    path = tmp_path / "leaps.jsonl"
    path.write_text("".join(line + "\n" for line in _small(leap=True)))
    assert '{"leap":' in path.read_text()
    (life,) = read_journal(path)
    assert life.lines == _small() == replay(life.lines)
    path.write_text(path.read_text().replace('"times":', '"tempi":'))
    with pytest.raises(ArmillaryError, match=r"line \d+"):
        read_journal(path)


def _small(leap: bool = False) -> list[str]:
    from armillary.core.journal import Journal
    from armillary.measure.workload import WorkItem
    from armillary.twin.cost import IdealCost
    from armillary.twin.simulate import simulate

    lines: list[str] = []
    items = (WorkItem(id=str(i), arrival=0.1 * i, prompt_tokens=5, output_tokens=6) for i in range(4))
    simulate(SchedulerConfig(16, 32, block_size=4), items, IdealCost(0.05), journal=Journal(lines.append), leap=leap)
    return lines


def spoilt(change: Callable[[dict[str, Any]], None]) -> list[str]:
    lines = _small()
    at = next(i for i, line in enumerate(lines) if line.startswith('{"submit"'))
    record = json.loads(lines[at])
    change(record)
    return [*lines[:at], json.dumps(record), *lines[at + 1 :]]


@pytest.mark.parametrize(
    "lines",
    [
        ["not json"],
        ["[1]"],
        ['{"scheduler":{"num_blocks":1}}'],
        ['{"scheduler":{"num_blocks":8,"max_context":8,"no_such":1}}'],
        spoilt(lambda r: r.pop("prompt")),
        spoilt(lambda r: r.update(at=1e9)),
        spoilt(lambda r: r.update(max_tokens="many")),
        spoilt(lambda r: r.update(at=None)),
        spoilt(lambda r: r.update(submit="someone else")),
    ],
)
def test_what_is_no_journal_is_refused_with_its_line(lines: list[str]) -> None:
    with pytest.raises(ArmillaryError, match=r"line \d+") as refusal:
        replay(lines)
    assert refusal.value.code is Code.INVALID_REQUEST


@pytest.mark.parametrize("content", [None, "", "hello\n", b"\xff\xfe"])
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, content: str | bytes | None) -> None:
    path = tmp_path / "journal.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    run_and_status(["compare", str(path)], 2)
