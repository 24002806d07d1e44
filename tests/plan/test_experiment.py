"""The file, the runs, their order and seeds, and going on where one stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from armillary.errors import ArmillaryError
from armillary.plan.experiment import Experiment, plan_runs, read_experiment, settle, take_runs

BASE = {
    "deployment": {"engine": {"kv_blocks": 256}},
    "workload": {"requests": 50, "rate": 10.0},
    "cost": {"step_s": 0.01},
    "factors": {"engine.max_running": [4, 16], "workload.rate": [5.0, 20.0], "engine.prefix_cache": [False, True]},
    "design": "full",
    "replicates": 2,
}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return path


def test_runs_are_shuffled_in_blocks_that_share_their_arrivals(tmp_path):
    given = read_experiment(written(tmp_path))
    runs = plan_runs(given, given.make_design())
    assert [run.block for run in runs] == [0] * 8 + [1] * 8
    assert [run.row for run in runs[:8]] != sorted(run.row for run in runs[:8])
    assert sorted(run.row for run in runs[8:]) == list(range(8))
    assert {run.seed for run in runs if run.block == 0} != {run.seed for run in runs if run.block == 1}
    assert len({run.seed for run in runs}) == 2
    assert runs == plan_runs(given, given.make_design())


def test_equal_points_of_a_block_have_seeds_of_their_own(tmp_path):
    factors = {"engine.max_running": [4, 16], "workload.rate": [5.0, 20.0]}
    given = read_experiment(written(tmp_path, factors=factors, design="central-composite"))
    runs = [run for run in plan_runs(given, given.make_design()) if run.block == 0]
    centres = [run for run in runs if run.point == {"engine.max_running": 10, "workload.rate": 12.5}]
    assert len(centres) == 3 and len({run.seed for run in centres}) == 3


def test_a_point_becomes_a_deployment_and_a_workload(tmp_path):
    given = read_experiment(written(tmp_path))
    deployment, workload = settle(given, {"engine.max_running": 4, "workload.rate": 20.0})
    assert deployment.engine.max_running == 4 and deployment.engine.kv_blocks == 256
    assert workload.rate == 20.0 and workload.requests == 50
    with pytest.raises(ArmillaryError, match=r"with engine.max_running = 0: .*at least 1"):
        settle(given, {"engine.max_running": 0})


@pytest.mark.parametrize(
    ("deployment", "path"),
    [
        ({"engine": 3}, "engine.kv_blocks"),
        ({"fleet": {"replicas": 5}}, "fleet.replicas.0.count"),
        ({"fleet": {"replicas": [5]}}, "fleet.replicas.0.count"),
        ({"models": 7}, "models.0.engine.kv_blocks"),
    ],
)
def test_what_is_no_group_is_refused_where_a_factor_lies_below_it(tmp_path, deployment, path):
    given = read_experiment(written(tmp_path, deployment=deployment))
    with pytest.raises(ArmillaryError, match=r"with .* must (hold keys and values|be a list), given \d"):
        settle(given, {path: 4})


def test_a_stopped_experiment_goes_on(tmp_path):
    given = read_experiment(written(tmp_path))
    runs = plan_runs(given, given.make_design())
    record, taken = tmp_path / "runs.jsonl", []

    def breaks(point, seed):
        if len(taken) == 5:
            raise KeyboardInterrupt
        taken.append(point)
        return {"ttft_p95": float(len(taken))}

    with pytest.raises(KeyboardInterrupt):
        take_runs(given, runs, breaks, record)
    with record.open("a") as file:
        file.write('{"run": 5, "point"')  # the machine stopped while it wrote
    later = []
    found = take_runs(given, runs, lambda p, s: (later.append(p), {"ttft_p95": 9.0})[1], record)
    assert [value["ttft_p95"] for value in found] == [1, 2, 3, 4, 5] + [9.0] * 11
    assert len(later) == 11
    again = take_runs(given, runs, lambda p, s: pytest.fail("taken twice"), record)
    assert again == found
    assert len(record.read_text().splitlines()) == 17


def test_a_record_of_another_experiment_is_refused(tmp_path):
    given = read_experiment(written(tmp_path))
    runs = plan_runs(given, given.make_design())
    record = tmp_path / "runs.jsonl"
    take_runs(given, runs, lambda p, s: {"ttft_p95": 1.0}, record)
    other = read_experiment(written(tmp_path, seed=1))
    with pytest.raises(ArmillaryError, match="--runs"):
        take_runs(other, plan_runs(other, other.make_design()), lambda p, s: {"ttft_p95": 1.0}, record)
    # Another question to the same runs is no other experiment.
    asked = read_experiment(written(tmp_path, responses=["tpot_p95"], title="again"))
    with pytest.raises(ArmillaryError, match="must hold runs") as refused:
        (tmp_path / "no.jsonl").write_text(json.dumps({"armillary_experiment": 1, "digest": "0"}) + "\n")
        take_runs(asked, runs, lambda p, s: {}, tmp_path / "no.jsonl")
    assert "no.jsonl" in refused.value.message
    (tmp_path / "junk.jsonl").write_text("hello\n")
    with pytest.raises(ArmillaryError, match="record of runs"):
        take_runs(given, runs, lambda p, s: {}, tmp_path / "junk.jsonl")


def test_a_run_without_the_figure_stops_the_experiment_and_is_not_a_miss(tmp_path):
    given = read_experiment(written(tmp_path))
    runs = plan_runs(given, given.make_design())
    with pytest.raises(ArmillaryError, match="every run must give ttft_p95.*failed_share"):
        take_runs(given, runs, lambda p, s: {"failed_share": 1.0, "ttft_p95": float("nan")}, tmp_path / "runs.jsonl")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"factors": {"engine.max_runing": [1, 2]}}, "did you mean max_running"),
        ({"factors": {}}, "factors"),
        ({"designs": "full"}, "did you mean design"),
        ({"workload": {"seed": 3}}, "set `seed`"),
        ({"workload": {"rat": 3}}, "rate"),
        ({"target": "engine"}, "cost"),
        ({"cost": {"speed": 1.0}}, "speed"),
        ({"responses": ["good_share"]}, "slo"),
        ({"factors": {"server.max_connections": [1, 2]}}, "no HTTP server"),
        ({"factors": {"fleet.route": ["round_robin", "least_loaded"]}, "target": "engine", "cost": None}, "one server"),
        ({"deployment": "missing.yaml"}, "missing.yaml"),
        ({"replicates": 0}, "at least 1"),
    ],
)
def test_what_a_file_may_not_say(tmp_path, changes, words):
    with pytest.raises(ArmillaryError, match=words):
        given = read_experiment(written(tmp_path, **changes))
        for run in plan_runs(given, given.make_design()):
            settle(given, run.point)


def test_there_is_something_between_two_whole_numbers_where_the_setting_takes_it(tmp_path):
    factors = {"workload.prefix_share": [0, 1], "engine.max_running": [4, 16]}
    given = read_experiment(written(tmp_path, factors=factors, design="central-composite"))
    middle = [run.point for run in plan_runs(given, given.make_design()) if run.point["engine.max_running"] == 10]
    assert {point["workload.prefix_share"] for point in middle} == {0.0, 0.5, 1.0}


def test_a_record_that_cannot_be_kept_is_refused(tmp_path):
    given = read_experiment(written(tmp_path))
    with pytest.raises(ArmillaryError, match="runs can be kept"):
        take_runs(given, plan_runs(given, given.make_design()), lambda p, s: {}, tmp_path)


def test_a_deployment_of_its_own_file(tmp_path):
    (tmp_path / "deployment.yaml").write_text("engine: {kv_blocks: 77}\n")
    given = read_experiment(written(tmp_path, deployment="deployment.yaml"))
    assert settle(given, {})[0].engine.kv_blocks == 77
    (tmp_path / "experiment.yaml").write_text("- a\n")
    with pytest.raises(ArmillaryError, match="keys and values"):
        read_experiment(tmp_path / "experiment.yaml")


def test_experiments_can_be_made_without_a_file():
    assert len(Experiment.model_validate({**BASE, "design": "fractional", "resolution": 3}).make_design().rows) == 4


def test_paths_are_taken_from_the_file_that_they_stand_in(tmp_path, monkeypatch):
    (tmp_path / "deployments").mkdir()
    (tmp_path / "deployments" / "one.yaml").write_text("models: [./m]\nengine: {kv_blocks: 77}\n")
    monkeypatch.chdir("/")
    given = read_experiment(written(tmp_path, deployment="deployments/one.yaml"))
    assert settle(given, {})[0].model.path == str(tmp_path / "deployments" / "m")
    given = read_experiment(written(tmp_path, deployment={"models": ["./m"]}))
    assert settle(given, {})[0].model.path == str(tmp_path / "m")


def test_a_factor_that_stands_twice_is_refused(tmp_path):
    path = written(tmp_path)
    path.write_text(path.read_text().replace("  workload.rate:", "  engine.max_running: [1, 2]\n  workload.rate:"))
    with pytest.raises(ArmillaryError, match="stands twice"):
        read_experiment(path)


def test_a_workload_that_contradicts_itself_is_refused_before_anything_is_run(tmp_path):
    given = read_experiment(written(tmp_path, factors={"workload.think": [0.0, 5.0]}))
    settle(given, {"workload.think": 0.0})
    with pytest.raises(ArmillaryError, match="workload.think = 5.0: think must come with users or with turns"):
        settle(given, {"workload.think": 5.0})
    with pytest.raises(ArmillaryError, match="a length must be N"):
        settle(given, {"workload.prompt_length": "long"})
    settle(given, {"workload.workload": "chat", "workload.think": 5.0})
