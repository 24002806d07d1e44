"""The bench beside other engines, with engines that compute nothing: no other is installed here."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from bench.peers import environments, run
from bench.peers.__main__ import main
from bench.peers.environments import Engine, Unavailable
from bench.peers.limits import Limits, fastest, measure
from bench.peers.record import Cell, Record, Results
from bench.peers.run import Choice, Session
from bench.peers.shapes import SHAPES, checkpoint
from bench.peers.table import render
from bench.peers.workloads import TITLES, make

LIMITS = Limits(read=2e10, float32=1e11, bf16=1e11, int8=4e11)
TINY = SHAPES["tiny"]


# ---------------------------------------------------------------- what is asked, and what is possible


def test_workloads_are_what_their_titles_say() -> None:
    a, b, c, d, p = (make(name, 1000) for name in TITLES)
    assert [(len(r.prompt), r.output) for r in a.requests] == [(128, 128)] and a.tokens == 127
    assert {(len(r.prompt), r.output) for r in b.requests} == {(256, 128)} and b.tokens == 16 * 128 and b.running == 16
    assert len(c.requests) == 64 and c.running == 32
    assert all(32 <= len(r.prompt) <= 512 and 16 <= r.output <= 256 for r in c.requests)
    assert {(len(r.prompt), r.output) for r in d.requests} == {(544, 32)} and len(d.requests) == 32
    assert len({r.prompt[:512] for r in d.requests}) == 1 and len({r.prompt[512:] for r in d.requests}) == 32
    assert p.tokens == 2048 and [r.output for r in p.requests] == [1]


@pytest.mark.parametrize("name", TITLES)
def test_repeats_have_the_same_lengths_and_other_tokens(name: str) -> None:
    first, again, second = make(name, 1000), make(name, 1000), make(name, 1000, 1)
    assert first == again != second
    assert [len(r.prompt) for r in first.requests] == [len(r.prompt) for r in second.requests]
    assert first.requests[0].prompt[:16] != second.requests[0].prompt[:16]
    small = make(name, 1000, scale=0.25)
    assert len(small.requests) == len(first.requests)
    factor = 0.5 if len(first.requests) == 1 else 0.25
    assert abs(small.longest - small.shared - (first.longest - first.shared) * factor) <= 2
    assert small.shared == first.shared


def test_the_limit_of_one_stream_is_reading_and_that_of_a_prompt_is_multiplying() -> None:
    shape = SHAPES["qwen3-0.6b"]
    weights = shape.layers * shape.layer_weights + shape.vocab * shape.hidden
    assert 590e6 < weights < 600e6
    position = 2 * shape.layers * shape.kv_heads * shape.head_dim * 2
    steps = range(129, 129 + 127)  # the token itself is seen too
    seconds = sum((2 * weights + position * known) / LIMITS.read for known in steps)
    assert fastest(shape, "bf16", make("A", 5000), LIMITS) == pytest.approx(127 / seconds)
    attention = 4 * shape.heads * shape.head_dim * shape.layers * 2048 * 2049 // 2
    operations = 2 * (shape.layers * shape.layer_weights * 2048 + shape.vocab * shape.hidden)
    assert fastest(shape, "int8", make("P", 5000), LIMITS) == pytest.approx(
        2048 / (operations / LIMITS.int8 + attention / LIMITS.bf16)
    )


def test_a_shared_prefix_is_computed_and_read_once() -> None:
    shared = make("D", 5000)
    apart = replace(shared, shared=0)
    slow_memory = Limits(read=1e8, float32=1e13, bf16=1e13, int8=1e13)
    for limits in (LIMITS, slow_memory):
        assert fastest(TINY, "bf16", shared, limits) > 1.5 * fastest(TINY, "bf16", apart, limits)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no compiler")
def test_limits_are_measured(tmp_path: Path) -> None:
    found = measure(2, 0.02, tmp_path)
    assert 1e8 < found.read < 1e13
    assert 1e8 < found.float32 <= found.bf16 < 1e15
    assert found.int8 >= found.float32


# ---------------------------------------------------------------- engines


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Engine]:
    """Engines by name instead of the real ones."""
    names = {"good": "Fake", "dying": "Dies", "square": "CannotConvert", "short": "StopsEarly"}
    engines = {name: Engine(name, "fake_peer", adapter) for name, adapter in names.items()}
    monkeypatch.setattr(environments, "ENGINES", engines)
    monkeypatch.setattr(run, "ENGINES", engines)
    monkeypatch.setattr("bench.peers.table.ENGINES", engines)
    monkeypatch.setattr(run, "measure", lambda *args, **kwargs: LIMITS)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    return engines


def session(
    tmp_path: Path, engines: list[str], workloads: str = "AD", repeats: int = 1, seconds: float | None = None,
    precisions: tuple[str, ...] = ("bf16",),
) -> tuple[Session, Results]:  # fmt: skip
    results = Results(tmp_path / "results.json", 2)
    choice = Choice(engines, workloads, precisions, ["tiny"], repeats, 0.1, 2, seconds)
    return Session(choice, results, print, tmp_path / "build"), results


def test_every_engine_is_measured_and_kept_and_not_measured_again(
    fakes: dict[str, Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, results = session(tmp_path, ["good"], repeats=2)
    first.prepare()
    first.run()
    assert [(r.cell.workload, r.repeat, r.error) for r in results.records] == [
        ("A", 0, None), ("D", 0, None), ("A", 1, None), ("D", 1, None),
    ]  # fmt: skip
    for record in results.records:
        assert record.rate and record.limit and record.peak > 1e6 and record.load_seconds > 0
        assert record.facts == {"version": "1"}
        workload = make(record.cell.workload, TINY.vocab, record.repeat, 0.1)
        assert record.heads == [[r.prompt[0]] * min(8, r.output) for r in workload.requests]
    monkeypatch.setattr(run, "Process", None)  # what is converted and measured is neither again
    again, kept = session(tmp_path, ["good"], repeats=2)
    again.prepare()
    again.run()
    assert kept.records == results.records


def test_what_does_not_work_is_a_row_that_says_why(
    fakes: dict[str, Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def interpreter(engine: Engine, folder: Path) -> Path:
        tried.append(engine.name)
        if engine.name == "good":
            raise Unavailable("does not install: no matching distribution")
        return environments.interpreter(engine, folder)

    monkeypatch.setattr(run, "interpreter", interpreter)
    every = ["good", "dying", "square", "short"]
    bench, results = session(tmp_path, every, workloads="D", precisions=("bf16", "int8"), repeats=2)
    bench.prepare()
    bench.run()
    assert tried == every
    assert {r.repeat for r in results.records} == {0}
    reasons = {(r.cell.engine, r.cell.precision): r.error or "" for r in results.records}
    assert "no matching distribution" in reasons["good", "bf16"]
    assert reasons["good", "int8"] == "knows no integers"
    assert "status 7: out of luck" in reasons["dying", "bf16"]
    assert "the checkpoint is round" in reasons["square", "bf16"]
    assert "did not generate as many tokens" in reasons["short", "bf16"]
    table = render(results.records, results.machine)
    assert all(reason in table for reason in reasons.values())
    assert "| bf16 | dying | – | – | – |" in table


def test_no_time_is_no_failure(fakes: dict[str, Engine], tmp_path: Path) -> None:
    bench, results = session(tmp_path, ["good"], seconds=0.0)
    bench.prepare()
    bench.run()
    assert results.records == []
    assert render(results.records, results.machine) == "Nothing was measured.\n"


def test_an_installation_is_tried_with_pip_and_its_last_words_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Finished:
        returncode = 1

    def pip(command: list[str], stdout: object, **rest: object) -> Finished:
        stdout.write("ERROR: No matching distribution found for llama\n")  # type: ignore[attr-defined]
        return Finished()

    monkeypatch.setattr(environments.subprocess, "run", pip)
    with pytest.raises(Unavailable, match="does not install: ERROR: No matching distribution found for llama"):
        environments.interpreter(environments.ENGINES["llama.cpp"], tmp_path)


# ---------------------------------------------------------------- results


def record(engine: str, rate: float, repeat: int = 0, workload: str = "A") -> Record:
    cell = Cell("tiny", "bf16", workload, engine, 0.5)
    return Record(cell, repeat, None, rate, 1.0, 2.0, 3 << 30, LIMITS.as_json(), 100.0, [[1, 2]], {"version": "9"})


def test_the_table_has_medians_spread_shares_and_ratios_within_rounds() -> None:
    ours = [record("armillary", rate, repeat) for repeat, rate in enumerate((20.0, 40.0, 60.0))]
    theirs = [record("llama.cpp", rate, repeat) for repeat, rate in enumerate((10.0, 10.0, 60.0))]
    table = render([*ours, *theirs], {"processor": "one"})
    assert "### tiny, every length times 0.5" in table
    assert "| bf16 | *limit* | 100 |" in table
    assert "| bf16 | armillary | 40 (20 to 60), 40% | 2.0 | 3.22 |" in table
    assert "| armillary / llama.cpp | bf16 | 2 (1 to 4) |" in table  # of rounds, not 4 of medians
    assert "first tokens of llama.cpp that are those of armillary, bf16: 100%" in table


def test_results_of_another_machine_are_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    kept = Results(path, 2)
    kept.add(record("armillary", 5.0))
    kept.add(record("armillary", 7.0))
    assert [r.rate for r in Results(path, 2).records] == [7.0]
    with pytest.raises(ValueError, match="must hold results of this machine with 1 threads"):
        Results(path, 1)
    assert Results(path, 1, fresh=True).records == []
    assert main(["--out", str(path), "--threads", "1", "--table"]) == 2
    assert main(["--out", str(path), "--threads", "2", "--table"]) == 0


def test_the_checkpoint_is_one_that_is_served(tmp_path: Path) -> None:
    from armillary import LLM, SamplingParams

    folder = checkpoint(TINY, tmp_path / "checkpoint")
    with LLM(folder, max_context=64, kv_blocks=8, threads=1) as llm:
        output = llm.generate([[300, 301, 302]], SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True))[0]
    assert output.error is None and len(output.choices[0].token_ids) == 5
