"""Experiments from file to page: on the twin, and on a real server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from armillary.cli.main import run
from armillary.errors import ArmillaryError
from armillary.measure.slo import Slo
from armillary.plan.conduct import conduct, prepare
from armillary.plan.experiment import Experiment
from armillary.plan.figures import FIGURES, figures
from armillary.plan.report import page, save_page
from armillary.plan.twin_subject import Twin

TWIN = {
    "title": "Small <slots>",
    "deployment": {"engine": {"kv_blocks": 512, "max_step_tokens": 64}},
    "workload": {"requests": 60, "rate": 4.0, "prompt_length": "16", "output_length": "uniform:4,12"},
    "cost": {"step_s": 0.02, "per_sequence_s": 0.004},
    "factors": {"engine.max_running": [1, 8], "workload.rate": [2.0, 6.0], "engine.order": ["fcfs", "priority"]},
    "design": "full",
    "replicates": 2,
    "responses": ["ttft_p95", "good_share"],
    "slo": "ttft p95 200ms",
}


def armillary(arguments: list[str], code: int = 0) -> None:
    with pytest.raises(SystemExit) as left:
        run(arguments)
    assert left.value.code == code


def written(folder: Path, **changes: object) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({**TWIN, **changes}))
    return path


def test_slots_and_load_matter_and_an_order_without_priorities_does_not(tmp_path, capsys):
    path, html = written(tmp_path), tmp_path / "page.html"
    armillary(["experiment", str(path), "--html", str(html)])
    said = capsys.readouterr().out
    assert "engine.max_running from 1 to 8 changes p95 TTFT" in said
    assert "engine.order: no effect found" in said
    assert "Best within what was tried: engine.max_running = 8" in said
    text = html.read_text()
    assert "<title>Small &lt;slots&gt;</title>" in text and "http" not in re.sub(r"http://www.w3.org\S*", "", text)
    assert text.count("<svg") >= 5 * 2
    armillary(["experiment", str(path), "--json"])
    told = json.loads(capsys.readouterr().out)
    first = told["responses"][0]
    assert {e["label"] for e in first["effects"] if e["matters"]} >= {"engine.max_running", "workload.rate"}
    assert told["design"]["runs"] == 16
    embedded = re.search(r'id="findings">(.*?)</script>', text, re.DOTALL)
    assert embedded is not None
    shown = json.loads(embedded[1])
    assert [e["estimate"] for e in shown["responses"][0]["effects"]] == [e["estimate"] for e in first["effects"]]


def test_a_response_that_nothing_moves_does_not_hide_the_others(tmp_path):
    path = written(tmp_path, responses=["failed_share", "e2e_mean"])
    found = conduct(prepare(path), tmp_path / "runs.jsonl")
    assert [analysis.response for analysis in found.analyses] == ["e2e_mean"]
    assert "share of requests that failed was 0.0% in every run: nothing here moves it." in found.about
    with pytest.raises(ArmillaryError, match="which is a folder"):
        save_page(found, tmp_path)
    armillary(["experiment", str(path), "--html", str(tmp_path), "--runs", str(tmp_path / "never.jsonl")], code=2)
    assert not (tmp_path / "never.jsonl").exists(), "refused before anything is run"


def test_a_list_of_runs_takes_none(tmp_path, capsys):
    path = written(tmp_path, design="fractional", resolution=3)
    armillary(["experiment", str(path), "--list"])
    said = capsys.readouterr().out
    assert "4 settings of 3 factors" in said and "cannot be told from" in said
    assert not path.with_suffix(".runs.jsonl").exists()


def test_the_twin_answers_alike_for_equal_seeds():
    response = Twin(Experiment.model_validate(TWIN))
    point = {"engine.max_running": 8, "workload.rate": 6.0, "engine.order": "fcfs"}
    assert response(point, 3) == response(point, 3) != response(point, 4)
    assert set(response(point, 3)) == set(FIGURES) - {"outside_share"}
    assert response.predicted_by(point) == ["Steps take the seconds that the experiment assumes."]


def test_hardware_and_fleets_can_be_varied():
    given = Experiment.model_validate(
        {
            **TWIN,
            "deployment": {"fleet": {"replicas": [{"count": 1, "hardware": "l4"}], "route": "round_robin"}},
            "cost": None,
            "factors": {"fleet.replicas.0.count": [1, 3], "fleet.route": ["round_robin", "least_loaded"]},
            "workload": {"requests": 40, "rate": 2000.0, "prompt_length": "64", "output_length": "16"},
        }
    )
    assert [factor.path for factor in given.factor_list()] == ["fleet.replicas.0.count", "fleet.route"]
    response = Twin(given)
    one, three = (response({"fleet.replicas.0.count": n, "fleet.route": "least_loaded"}, 0) for n in (1, 3))
    assert three["ttft_p95"] < one["ttft_p95"]
    (said,) = response.predicted_by({"fleet.replicas.0.count": 1, "fleet.route": "round_robin"})
    assert "L4" in said and "assumed" in said


def test_the_shipped_profile_predicts_the_bundled_model():
    given = Experiment.model_validate({**TWIN, "deployment": {"engine": {"kv_blocks": 512}}, "cost": None})
    twin = Twin(given)
    point = {"engine.max_running": 8, "workload.rate": 6.0, "engine.order": "fcfs"}
    (said,) = twin.predicted_by(point)
    assert "fitted" in said and "steps left out" in said
    assert 0 <= twin(point, 0)["outside_share"] <= 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cost": None, "deployment": {"fleet": {"replicas": [{"hardware": "abacus"}]}}}, "abacus"),
        ({"cost": {"step_s": 0}}, "above 0"),
        ({"deployment": {}}, "kv_blocks"),
        ({"responses": ["speed"]}, "ttft_p95"),
        ({"slo": "fast"}, "METRIC"),
        ({"factors": {"engine.max_running": [0, 8]}, "design": "full"}, "at least 1"),
    ],
)
def test_what_cannot_be_run_is_refused_before_or_at_the_first_run(tmp_path, changes, words):
    with pytest.raises(ArmillaryError, match=words):
        conduct(prepare(written(tmp_path, **changes)), tmp_path / "runs.jsonl")


def test_a_curved_surface_has_a_page_too(tmp_path):
    factors = {"engine.max_running": [1, 9], "engine.max_step_tokens": {"levels": [16, 256], "scale": "log"}}
    path = written(tmp_path, design="central-composite", factors=factors, responses=["e2e_mean"])
    found = conduct(prepare(path), tmp_path / "runs.jsonl")
    assert "engine.max_running²" in {effect.label for effect in found.analyses[0].effects}
    assert "Response surface" in page(found)


def test_figures_of_a_run_in_which_everything_failed():
    from armillary.measure.outcomes import Outcomes

    nothing = np.full(4, np.nan)
    zero = np.zeros(4, dtype=np.int64)
    run_of_none = Outcomes(np.arange(4.0), nothing, nothing, zero, zero, zero, np.zeros(4, dtype=np.bool_))
    found = figures(run_of_none, 10.0, Slo.parse("ttft p95 1s"))
    assert found["failed_share"] == 1.0 and found["good_share"] == 0.0 and "ttft_p95" not in found


def test_the_real_engine_is_not_measured_without_the_devices_that_are_asked(tmp_path):
    path = written(
        tmp_path,
        target="engine",
        cost=None,
        deployment={"fleet": {"replicas": [{"tensor_parallel": 2}]}},
        factors={"engine.max_running": [1, 4]},
        design="full",
    )
    with pytest.raises(ArmillaryError, match=r"must have one device to be measured .* given 2; ask the twin"):
        conduct(prepare(path), tmp_path / "runs.jsonl")


@pytest.mark.slow
def test_the_real_engine_answers_too(tmp_path):
    path = written(
        tmp_path,
        target="engine",
        cost=None,
        deployment={"engine": {"kv_blocks": 256, "max_context": 256}},
        workload={"requests": 8, "users": 4, "prompt_length": "16"},
        factors={"engine.max_running": [1, 4], "workload.output_length": ["4", "160"]},
        replicates=1,
        responses=["e2e_mean"],
    )
    found = conduct(prepare(path), tmp_path / "runs.jsonl")
    effects = {effect.label: effect for effect in found.analyses[0].effects}
    assert effects["workload.output_length"].estimate > 0
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 5
