"""Predictions against observations, recognised by what the files say; and journals asked again."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from armillary.cli.main import build_app
from armillary.core.config import SchedulerConfig
from armillary.core.journal import Journal
from armillary.errors import ArmillaryError
from armillary.measure.bench import BenchOptions
from armillary.measure.intervals import Interval
from armillary.measure.journal import read_journal
from armillary.measure.observed import lived
from armillary.measure.outcomes import Outcomes
from armillary.measure.presets import workload_of
from armillary.measure.record import Outcome, RequestRecord
from armillary.measure.report import Report
from armillary.measure.slo import Slo
from armillary.measure.summary import summarise
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.plan.again import recorded
from armillary.plan.against import Side, against, observation, paired, read_side
from armillary.twin.cost import IdealCost
from armillary.twin.simulate import simulate

CONFIG = SchedulerConfig(num_blocks=300, max_context=400, max_running=8, max_step_tokens=64)
SPEC = WorkloadSpec(requests=120, rate=12.0, prompt_length="uniform:5,60", output_length="uniform:2,20", seed=2)
LLAMA = {
    "model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16,
    "num_key_value_heads": 8, "intermediate_size": 2048, "max_position_embeddings": 2048, "vocab_size": 32000,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def simulated(path: Path, cost: IdealCost | None = None) -> Outcomes:
    lines: list[str] = []
    found = simulate(CONFIG, synthesise(SPEC), cost or IdealCost(0.01, 0.001), journal=Journal(lines.append))
    path.write_text("".join(f"{line}\n" for line in lines))
    return found.requests


def report(path: Path, run: Outcomes, together: int = 1) -> None:
    records = [
        RequestRecord(
            id=str(row), due=float(run.due[row]), sent=float(run.due[row]), first=float(run.first[row]),
            end=float(run.end[row]), outcome=Outcome.OK, output_tokens=int(run.output_tokens[row]),
            prompt_tokens=int(run.prompt_tokens[row]), gaps=[0.01] * (int(run.output_tokens[row] - 1) // together),
        )
        for row in range(len(run))
    ]  # fmt: skip
    summary = summarise(records, float(run.end.max()), Slo())
    Report(started=Report.now(), target={}, workload={"users": None}, summary=summary, records=records).save(path)


def prediction(path: Path, figures: dict[str, tuple[float, float | None]], replications: int = 3) -> None:
    told = {
        name: {
            "value": value,
            "low": None if half is None else value - half,
            "high": None if half is None else value + half,
        }
        for name, (value, half) in figures.items()
    }
    path.write_text(json.dumps({"armillary_forecast": 1, "figures": told, "replications": [{}] * replications}))


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(list(arguments)), list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_a_journal_tells_what_became_of_its_requests(tmp_path: Path) -> None:
    run = simulated(tmp_path / "journal.jsonl")
    found, seconds = lived(read_journal(tmp_path / "journal.jsonl")[-1])
    began = run.due[0]
    for name in ("first", "end"):
        assert getattr(found, name) + found.due * 0 == pytest.approx(getattr(run, name) - began, abs=0.02)
    for name in ("prompt_tokens", "output_tokens", "cached_tokens", "ok"):
        assert getattr(found, name).tolist() == getattr(run, name).tolist()
    assert found.gap_counts is not None and found.gap_counts.tolist() == (run.output_tokens - 1).tolist()
    assert seconds == pytest.approx(float(run.end.max() - began), abs=0.02)
    side = observation(found, seconds)
    exact = np.quantile(found.ttft, 0.5, method="inverted_cdf")
    assert side.figures["ttft p50"].value == pytest.approx(exact) and side.figures["itl p99"].value > 0


def test_a_stop_string_and_a_cancellation_are_told_apart(tmp_path: Path) -> None:
    simulated(tmp_path / "journal.jsonl")
    life = read_journal(tmp_path / "journal.jsonl")[-1]
    whole = len(workload_of(WorkloadSpec(workload=str(tmp_path / "journal.jsonl"))))
    # The same life, in which two requests end otherwise than by their length.
    changed: list[str] = []
    left = {"stop": "7", "cancelled": "9"}
    for line in life.lines:
        record = json.loads(line)
        for reason, name in left.items():
            if any(ended[0] == name for ended in record.get("ended", ())):
                record["ended"] = [ended for ended in record["ended"] if ended[0] != name]
                cancel = {"cancel": name, "at": record["until"] + 5.0, "index": None, "reason": reason}
                changed.append(json.dumps(record))
                record = cancel
        changed.append(json.dumps(record, separators=(",", ":")))
    (tmp_path / "other.jsonl").write_text("".join(f"{line}\n" for line in changed))
    run, _ = lived(read_journal(tmp_path / "other.jsonl")[-1])
    assert run.ok.sum() == whole - 1 and run.ok[7] and not run.ok[9]
    assert run.end[7] < run.end[9], "a stop string ends with the token that completed it"


def test_inside_overlapping_and_outside(tmp_path: Path) -> None:
    def side(name: Any, value: float, low: float, high: float) -> Side:
        return Side(name, {"ttft p50": Interval(value, low, high), "other": Interval(value, low, high)})

    expected = side("predicted", 1.0, 0.9, 1.1)
    for value, low, high, tolerance, verdict in (
        (1.05, 1.04, 1.06, 0.0, "inside"),
        (1.2, 1.05, 1.3, 0.0, "overlaps"),
        (1.2, 1.15, 1.3, 0.0, "outside"),
        (1.2, 1.15, 1.3, 0.21, "inside"),
        (0.5, -inf, inf, 0.0, "overlaps"),
    ):
        row = against(expected, side("observed", value, low, high), tolerance)[0]
        assert row.verdict == verdict and row.deviation == pytest.approx(value - 1.0)
    with pytest.raises(ArmillaryError, match="a figure in common"):
        against(expected, Side("observed", {"e2e p50": Interval(1, 1, 1)}))


def test_one_run_lies_further_out_than_the_mean(tmp_path: Path) -> None:
    assert Interval(2.0, 1.0, 3.0).of_one(3) == Interval(2.0, 0.0, 4.0)
    prediction(tmp_path / "p.json", {"ttft p50": (2.0, 0.5), "requests/s": (3.0, None)}, replications=3)
    found = read_side(tmp_path / "p.json").figures
    assert (found["ttft p50"].low, found["ttft p50"].high) == (1.0, 3.0)
    assert found["requests/s"].low == found["requests/s"].high == 3.0
    # A share ends at the whole, a run's does not lie closer above the mean than below it for that.
    assert Interval(0.9, 0.7, 1.0).of_one(3) == Interval(0.9, pytest.approx(0.5), pytest.approx(1.3))
    shares = {"armillary_forecast": 1, "figures": {"cached share": {"value": 0.9, "low": 0.7, "high": 1.0}}}
    (tmp_path / "s.json").write_text(json.dumps(shares | {"replications": [0] * 3}))
    assert read_side(tmp_path / "s.json").figures["cached share"].low == pytest.approx(0.5)
    plan = {"armillary_plan": 1, "design": {"replicas": 9}, "trust": {"replications": 3}}
    plan["figures"] = json.loads((tmp_path / "p.json").read_text())["figures"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert set(read_side(tmp_path / "plan.json").figures) == {"ttft p50"}, "rates are of a part of the fleet"


def test_the_command_line_recognises_what_it_is_given(tmp_path: Path) -> None:
    run = simulated(tmp_path / "journal.jsonl")
    report(tmp_path / "report.json", run)
    told = observation(run, float(run.end.max())).figures
    figures = {name: (figure.value, 0.4 * figure.value) for name, figure in told.items() if name != "cached share"}
    prediction(tmp_path / "good.json", figures)
    prediction(tmp_path / "bad.json", figures | {"ttft p50": (10.0, 0.1)})
    files = {name: str(tmp_path / name) for name in ("journal.jsonl", "report.json", "good.json", "bad.json")}
    for arguments in (("good.json", "report.json"), ("report.json", "good.json"), ("good.json", "journal.jsonl")):
        code, said = invoke("compare", *(files[name] for name in arguments))
        assert code == 0 and "predicted" in said and "inside" in said and "outside" not in said.replace("inside", "")
    code, said = invoke("compare", files["bad.json"], files["report.json"], "--json")
    assert code == 1 and json.loads(said)["outside"] == 1
    (wrong,) = [row for row in json.loads(said)["rows"] if row["verdict"] == "outside"]
    assert wrong["name"] == "ttft p50" and wrong["first"]["value"] == 10.0
    assert invoke("compare", files["report.json"], files["report.json"])[0] == 0
    code, said = invoke("compare", files["journal.jsonl"])
    assert code == 0 and "decided the same" in said
    with pytest.raises(ArmillaryError, match="tolerance must be left out"):
        invoke("compare", files["journal.jsonl"], "--tolerance", "0.1")


def test_gaps_of_several_tokens_are_not_compared(tmp_path: Path) -> None:
    run = simulated(tmp_path / "journal.jsonl")
    report(tmp_path / "one.json", run)
    report(tmp_path / "two.json", run, together=2)
    one, two = read_side(tmp_path / "one.json"), read_side(tmp_path / "two.json")
    assert one.figures["itl p50"].value == 0.01 and "itl p50" not in two.figures
    assert "tpot p50" in two.figures and "gaps are not compared" in two.notes[-1]


def test_an_unstable_observation_has_no_percentiles(tmp_path: Path) -> None:
    simulated(tmp_path / "journal.jsonl", IdealCost(0.06, 0.001))
    side = read_side(tmp_path / "journal.jsonl")
    assert "requests/s" in side.figures and "ttft p50" not in side.figures and "unstable" in side.notes[0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("hello", "given"),
        ("[1]", "none of these"),
        ("{}", "none of these"),
        ('{"armillary_forecast": 1}', "figures"),
        ('{"armillary_plan": 1, "figures": {}}', "design"),
        ('{"armillary_report": 1}', "started"),
        ('{"scheduler":{}}\n', "at least one request"),
        ('{"scheduler":{}}', "it breaks off"),
        ('{"scheduler":{}}\n{"submit":"a"}\n', "line 2 cannot be read"),
        ('{"scheduler":{}}\n{"step":0,"until":1,"admitted":[["a",0,0]]}\n', "line 2 cannot be read"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(ArmillaryError, match=why):
        read_side(tmp_path / "file")
    with pytest.raises(ArmillaryError, match="readable text file"):
        read_side(tmp_path / "nothing")


def test_a_prediction_alone_is_asked_for_an_observation(tmp_path: Path) -> None:
    prediction(tmp_path / "p.json", {"ttft p50": (2.0, 0.5)})
    with pytest.raises(ArmillaryError, match="must be compared with an observation, given none"):
        paired(tmp_path / "p.json", None)


def test_a_journal_is_a_workload_at_any_speed(tmp_path: Path) -> None:
    simulated(tmp_path / "journal.jsonl")
    path = str(tmp_path / "journal.jsonl")
    found = workload_of(WorkloadSpec(workload=path))
    assert len(found) == 120 and found.origin == {"trace": "journal.jsonl", "format": "journal"}
    fast = workload_of(WorkloadSpec(workload=path, speed=4.0))
    assert fast.duration == pytest.approx(found.duration / 4) and fast.origin["speed"] == 4.0
    with pytest.raises(ArmillaryError, match="rate must be given or speed"):
        workload_of(WorkloadSpec(workload=path, speed=4.0, rate=3.0))
    with pytest.raises(ArmillaryError, match="speed must come with a file"):
        workload_of(WorkloadSpec(speed=4.0))
    (tmp_path / "journal.jsonl").write_text((tmp_path / "journal.jsonl").read_text() + "{}\n")
    assert workload_of(WorkloadSpec(workload=path)).items == found.items, "a file that has changed is read anew"


def test_yesterday_under_other_settings(tmp_path: Path) -> None:
    simulated(tmp_path / "journal.jsonl")
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    known = recorded(tmp_path / "journal.jsonl")
    assert known is not None and known.settings["kv_blocks"] == 300 and known.settings["max_running"] == 8
    base = ("replay", str(tmp_path / "journal.jsonl"), str(tmp_path / "config.json"))
    code, said = invoke(*base, "--hardware", "l4", "--replications", "2", "--speed", "2", "--json")
    told = json.loads(said)
    assert code == 0 and told["replications"][0]["requests"] == 120
    assert told["recorded"]["ttft p50"] > told["figures"]["ttft p50"]["value"] > 0
    assert told["kinds"][0]["kv_blocks"] == 8 * 400 / 16, "another machine has another memory"
    code, said = invoke(*base, "--hardware", "l4", "--replications", "2", "--max-running", "1", "--no-doubt")
    assert code == 0 and "recorded" in said and "at most 1 sequences" in said
    assert known.settings_for(base[2])["max_context"] == known.settings["max_context"] == 400
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "max_position_embeddings": 64}))
    assert known.settings_for(base[2]) == {**known.settings, "max_context": 64}, "as long as this model may go on"


def test_a_recording_goes_to_a_server_as_bench_sends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = simulated(tmp_path / "journal.jsonl")
    report(tmp_path / "report.json", run)
    asked: list[BenchOptions] = []

    def bench(options: BenchOptions, console: object) -> Report:
        asked.append(options)
        return Report.load(tmp_path / "report.json")

    monkeypatch.setattr("armillary.measure.bench.run_bench", bench)
    file = str(tmp_path / "journal.jsonl")
    code, said = invoke("replay", file, "--url", "http://there", "--speed", "3", "--warmup", "0", "--slo", "e2e p95 9s")
    assert code == 0 and "TTFT" in said
    (options,) = asked
    assert (options.url, options.speed, options.warmup, options.slo) == ("http://there", 3.0, 0, "e2e p95 9s")
    assert Path(options.workload or "").name == "journal.jsonl" and len(workload_of(options)) == 120
    for flags, why in (
        (("--url", "http://there", "--max-running", "4"), "--max-running must be left out with --url"),
        (("--url", "http://there", "--replications", "4"), "--replications must be left out with --url"),
        (("--warmup", "0"), "--warmup must come with --url"),
    ):
        with pytest.raises(ArmillaryError, match=why):
            invoke("replay", file, *flags)
    assert invoke("replay", str(tmp_path / "nothing"))[0] == 2
