"""A plan is one for the busiest time of its workload, wherever in it that is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from armillary.cli.main import build_app
from armillary.measure.arrivals import parse_arrivals
from armillary.measure.synthesis import WorkloadSpec
from armillary.measure.workload import WorkItem, Workload
from armillary.plan.busiest import CYCLES, MOST_OF_CYCLES, NEAR, Recording, at_its_highest, cycles_s
from armillary.plan.steady_load import Pace

LLAMA = {
    "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 8192, "max_position_embeddings": 8192, "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}  # fmt: skip
PACE = Pace(0.02, 1e-4, 1.0, 1e-3)


def recorded(file: Path, *parts: tuple[int, float, int, int]) -> str:
    """A file of parts, each of so many requests, so many a second, with so long prompts and answers."""
    rng, items, now = np.random.default_rng(0), [], 0.0
    for count, rate, prompt, output in parts:
        for gap in rng.exponential(1 / rate, count).tolist():
            now += gap
            items.append(WorkItem(id=str(len(items)), arrival=now, prompt_tokens=prompt, output_tokens=output))
    Workload(items).write(file)
    return str(file)


def test_windows_lie_around_the_busiest_and_all_over_a_file(tmp_path: Path) -> None:
    calm, heavy = (4000, 10.0, 50, 10), (1500, 10.0, 3000, 200)
    file = recorded(tmp_path / "one.jsonl", calm, heavy, (4500, 20.0, 50, 10))
    found = Recording.of(WorkloadSpec(workload=file), PACE)
    assert 4000 <= found.busiest <= 5500 - 600, "more requests a second come later, but with less work"
    starts = [found.start(number, 300) for number in range(40)]
    assert all(4000 - 300 <= start <= 5500 for start in starts[:NEAR]) and len(set(starts[:NEAR])) == NEAR
    rest = np.sort(starts[NEAR:])
    assert rest[0] < 1000 and rest[-1] > 9000 and np.diff(rest).max() < 1000
    assert found.share(1, 300) == pytest.approx(0.03) and found.share(40, 10_000) == 1
    load = found.load(40.0, 0, 300, ramp_s=1.0)
    columns = load.workload.columns
    assert columns.arrival is not None and load.requests == 300 and 20 < load.before < 70
    assert columns.arrival[0] == 0 and columns.arrival[load.before] == pytest.approx(load.begins, abs=1e-6)
    assert (columns.arrival[-1] - load.begins) == pytest.approx(300 / 40, rel=0.2), "the rate is that of the busiest"
    assert set(columns.prompt_tokens.tolist()) == {3000}
    # The same requests at another rate, only closer together.
    faster = found.load(80.0, 0, 300, ramp_s=0.5).workload.columns
    assert faster.arrival is not None and faster.ids == columns.ids
    assert 2 * faster.arrival == pytest.approx(columns.arrival)
    short = found.load(40.0, 7, 20_000, ramp_s=1.0)
    assert short.requests == len(found.workload)


def test_a_window_that_begins_in_a_conversation_begins_with_its_whole_prompt(tmp_path: Path) -> None:
    items = [
        WorkItem(id=f"{turn}-{one}", arrival=0.1 * (one + 100 * turn), session=str(one), prompt_tokens=20 + 30 * turn,
                 output_tokens=10, history=30 * turn if turn else 0)
        for turn in range(8) for one in range(100)
    ]  # fmt: skip
    Workload(items).write(tmp_path / "talks.jsonl")
    found = Recording.of(WorkloadSpec(workload=str(tmp_path / "talks.jsonl")), PACE)
    history = found.load(10.0, NEAR, 250, ramp_s=0.0).workload.columns.history
    assert history is not None and (history[:100] == 0).all() and (history[100:] > 0).all()


@pytest.mark.parametrize("arrivals", ["diurnal:0.9", "mmpp:10,0.1,60", "mmpp:10,0.1,600"])
def test_what_changes_too_slowly_is_asked_at_its_highest_rate(arrivals: str) -> None:
    spec = WorkloadSpec(arrivals=arrivals, prompt_length="70")
    seen, peak = at_its_highest(spec, 100.0)
    assert seen.arrivals == "poisson" and peak == parse_arrivals(arrivals).peak > 1.8 and cycles_s(seen) == 0
    assert seen.prompt_length == "70"


def test_what_changes_quickly_is_simulated_for_several_cycles() -> None:
    spec = WorkloadSpec(arrivals="mmpp:4,0.1,0.5")
    assert at_its_highest(spec, 100.0) == (spec, 1.0) and cycles_s(spec) == CYCLES * 5
    assert at_its_highest(spec, MOST_OF_CYCLES / CYCLES / 5 + 1)[1] > 1
    poisson = WorkloadSpec(workload="chat")
    assert at_its_highest(poisson, 1e9) == (poisson, 1.0) and cycles_s(poisson) == 0


def plan(folder: Path, *more: str) -> tuple[dict, str]:
    (folder / "config.json").write_text(json.dumps(LLAMA))
    arguments = ["plan", str(folder / "config.json"), "--hardware", "l4", "--slo", "ttft p95 1s, tpot p95 60ms"]
    arguments += ["--max-running", "32", "--max-step-tokens", "512", "--processes", "1", "--out", str(folder / "out")]
    result = CliRunner().invoke(build_app([*arguments, *more]), [*arguments, *more])
    assert result.exit_code == 0, result.output
    return json.loads((folder / "out" / "plan.json").read_text()), " ".join(result.stdout.split())


@pytest.mark.slow
def test_a_file_that_begins_with_little_is_planned_for_its_worst(tmp_path: Path) -> None:
    light, heavy = (1500, 20.0, 50, 10), (3000, 20.0, 1000, 100)
    files = {name: recorded(tmp_path / f"{name}.jsonl", *parts) for name, parts in
             {"light": [light], "heavy": [heavy], "both": [light, heavy]}.items()}  # fmt: skip
    several = {name: plan(tmp_path, "--workload", file, "--replications", "4") for name, file in files.items()}
    knee = {name: found[0]["knee"]["value"] for name, found in several.items()}
    assert knee["light"] > 5 * knee["heavy"]
    assert knee["both"] == pytest.approx(knee["heavy"], rel=0.15)
    told = several["both"][1]
    assert "each of a window of the file" in told and "3 windows are around the busiest of the file, 1 from all" in told
    assert 0 < several["both"][0]["busiest"]["share_of_the_file_simulated"] < 1
    assert "It sends the beginning of the file" in told


@pytest.mark.slow
def test_a_plan_for_bursts_is_one_for_their_rate(tmp_path: Path) -> None:
    lengths = ("--prompt-length", "100", "--output-length", "20", "--replications", "2")
    steady, _ = plan(tmp_path, *lengths)
    bursts, told = plan(tmp_path, *lengths, "--arrivals", "mmpp:10,0.1,600")
    peak = parse_arrivals("mmpp:10,0.1,600").peak
    assert bursts["busiest"]["times_the_mean_rate"] == pytest.approx(peak)
    assert bursts["knee"]["value"] * peak == pytest.approx(steady["knee"]["value"], rel=1e-9), "the same requests"
    assert bursts["rate"] * peak == pytest.approx(steady["rate"])
    assert "requests/s on average" in told and "as if that lasted" in told
    assert "--arrivals poisson" in bursts["load_test"]["command"]
