"""The bench beside other engines, with engines that compute nothing: no other is installed here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
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
    names |= {"broken": "BreaksOff", "hanging": "Hangs", "shrinking": "Shrinks"}
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


def gone(pid: int) -> bool:
    """Whether there is no such process, or what is left of it waits to be counted."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_an_engine_that_hangs_or_breaks_off_is_ended_with_its_children_and_the_bench_goes_on(
    fakes: dict[str, Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "RUN_SECONDS", 2.0)
    monkeypatch.setenv("FAKE_CHILD", str(tmp_path / "child"))
    bench, results = session(tmp_path, ["hanging", "broken", "good"], workloads="D")
    (tmp_path / "build" / "logs").mkdir(parents=True)
    (tmp_path / "build" / "logs" / "broken.log").write_text("said by an earlier process\n", encoding="utf-8")
    bench.prepare()
    bench.run()
    reasons = {r.cell.engine: r.error for r in results.records}
    assert reasons["hanging"] == "took more than 2 s to run"
    assert reasons["broken"] == f"its process ended with signal 4 ({signal.strsignal(4)}): no word"
    assert reasons["good"] is None
    assert gone(int((tmp_path / "child").read_text(encoding="utf-8")))


def test_what_takes_no_longer_than_its_first_token_has_no_rate(fakes: dict[str, Engine], tmp_path: Path) -> None:
    bench, results = session(tmp_path, ["shrinking"], workloads="A")
    bench.prepare()
    bench.run()
    assert [r.rate for r in results.records] == [None]
    assert "no longer than for the first token" in (results.records[0].error or "")


def test_a_process_is_ended_with_what_it_started_in_groups_of_their_own() -> None:
    start = "import subprocess; print(subprocess.Popen(['sleep', '1000'], process_group=0).pid, flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
    )
    with process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert not gone(child)
        environments.end(process)
        environments.end(process)
    assert process.returncode == -signal.SIGKILL
    psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=10)
    assert gone(child)


def test_no_time_is_no_failure(fakes: dict[str, Engine], tmp_path: Path) -> None:
    bench, results = session(tmp_path, ["good"], seconds=0.0)
    bench.prepare()
    bench.run()
    assert results.records == []
    assert render(results.records, results.machine) == "Nothing was measured.\n"


def test_an_installation_is_tried_with_pip_and_its_last_words_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = tmp_path / "pip"
    pip.write_text("#!/bin/sh\necho ERROR: No matching distribution found for $5 >&2; exit 1\n", encoding="utf-8")
    pip.chmod(0o755)
    started: list[list[str]] = []
    popen = subprocess.Popen

    def start(command: list[str], **rest: object) -> object:
        started.append(command)
        return popen([str(pip), *command] if "install" in command else ["true"], **rest)  # type: ignore[call-overload]

    monkeypatch.setattr(environments.subprocess, "Popen", start)
    log = tmp_path / "logs" / "llama.cpp-install.log"
    log.parent.mkdir()
    log.write_text("error: of another day\n", encoding="utf-8")
    with pytest.raises(Unavailable, match="does not install: ERROR: No matching distribution found for"):
        environments.interpreter(environments.ENGINES["llama.cpp"], tmp_path)
    assert "another day" not in log.read_text(encoding="utf-8")
    assert "--no-cache-dir" in started[-1]  # a wheel built with other variables is not this one


def test_an_installation_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    popen = subprocess.Popen
    ended: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], **rest: object) -> object:
        ended.append(popen(["sleep", "1000"], **rest))  # type: ignore[call-overload]
        return ended[-1]

    monkeypatch.setattr(environments.subprocess, "Popen", start)
    monkeypatch.setattr(environments, "INSTALL_SECONDS", 0.1)
    with pytest.raises(Unavailable, match="does not install within"):
        environments.interpreter(environments.ENGINES["llama.cpp"], tmp_path)
    assert [process.poll() for process in ended] == [-signal.SIGKILL]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_what_vllm_reads_is_the_checkpoint_rounded(tmp_path: Path, precision: str) -> None:
    import torch
    from bench.peers.engines.compressed_file import GROUP, write_compressed
    from safetensors.torch import load_file

    folder = checkpoint(TINY, tmp_path / "checkpoint")
    write_compressed(folder, tmp_path / "out", precision)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    quantised = [name for name in before if name not in after or after[name].dtype == torch.int8]
    assert len(quantised) == 7 * TINY.layers and all("_proj" in name for name in quantised)
    for name in quantised:
        scale = after[name + "_scale"].float()
        if precision == "int8":
            values = after[name].float()
        else:
            packed, (rows, columns) = after[name + "_packed"], after[name + "_shape"].tolist()
            values = torch.stack([(packed >> 4 * place & 15) - 8 for place in range(8)], 2).view(rows, columns).float()
            scale = scale.repeat_interleave(GROUP, 1)
        error = (values * scale - before[name].float()).abs()
        assert (error <= scale * (0.501 if precision == "int8" else 0.53)).all()  # scales of 4 bits are bfloat16
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    assert weights["num_bits"] == int(precision[3:])


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
    assert main(["--out", str(path), "--threads", "1", "--prepare"]) == 2
    assert main(["--out", str(path), "--threads", "1", "--table"]) == 0  # printing measures nothing


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "machine": {}, "records": [{"rate": 1}]}'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    for way in ("--table", "--prepare"):
        assert main(["--out", str(path), way]) == 2
        assert f"{path} must hold results of this bench" in capsys.readouterr().err


def test_the_checkpoint_is_one_that_is_served(tmp_path: Path) -> None:
    from armillary import LLM, SamplingParams

    folder = checkpoint(TINY, tmp_path / "checkpoint")
    with LLM(folder, max_context=64, kv_blocks=8, threads=1) as llm:
        output = llm.generate([[300, 301, 302]], SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True))[0]
    assert output.error is None and len(output.choices[0].token_ids) == 5
