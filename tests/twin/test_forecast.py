"""From a deployment file and a workload to figures with intervals."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from armillary.cli.main import build_app
from armillary.deployment import Deployment, build
from armillary.errors import ArmillaryError
from armillary.measure.slo import Slo
from armillary.measure.synthesis import WorkloadSpec
from armillary.twin.cost import IdealCost
from armillary.twin.deployed import Deployed
from armillary.twin.forecast import draw_factor, forecast

LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 8192, "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}  # fmt: skip
SPEC = WorkloadSpec(requests=60, rate=5.0, prompt_length="uniform:100,300", output_length="uniform:10,40")
SLO = Slo.parse("ttft p95 2s")


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return str(tmp_path / "config.json")


def deployment(model: str, **fleet: object) -> Deployment:
    return build(None, model={"path": model}).model_copy(
        update={"fleet": Deployment.model_validate({"fleet": fleet}).fleet}
    )


def test_a_model_is_a_config_and_hardware_a_name(model: str) -> None:
    deployed = Deployed(deployment(model, replicas=[{"hardware": "h100", "count": 2}]))
    (kind,) = deployed.kinds
    assert kind.kv_bytes == 2 * 32 * 8 * 128 * 2
    assert kind.config.num_blocks == min(64 * 512, int(0.9 * 80e9 - 2 * 8.03e9) // (16 * kind.kv_bytes))
    found = forecast(deployed, SPEC, SLO, replications=3)
    assert found.met_share == 1.0 and found.figures["ttft p95"].low < found.figures["ttft p95"].value
    again = forecast(deployed, SPEC, SLO, replications=3)
    assert again.figures == found.figures


def test_replications_differ_by_luck_and_by_machine(model: str) -> None:
    deployed = Deployed(deployment(model, replicas=[{"hardware": "l4"}]))
    sure = forecast(deployed, SPEC, SLO, replications=3, doubt=False)
    assert {one.factor for one in sure.replications} == {1.0} and len({one.seed for one in sure.replications}) == 3
    unsure = forecast(deployed, SPEC, SLO, replications=3)
    assert len({one.factor for one in unsure.replications}) == 3
    for found in (sure, unsure):  # two of three good, say, are no reason to hold more than all possible
        for name, figure in found.figures.items():
            assert figure.low >= 0 and (figure.high <= 1 or not name.endswith("share")), name
    width = [found.figures["tpot p50"].high - found.figures["tpot p50"].low for found in (sure, unsure)]
    assert width[1] > width[0]


def test_replications_go_on_until_they_are_precise(model: str) -> None:
    deployed = Deployed(deployment(model, replicas=[{"hardware": "l4"}]))
    spec = SPEC.model_copy(update={"requests": 300})
    few = forecast(deployed, spec, SLO, replications=3)
    found = forecast(deployed, spec, SLO, replications=3, precision=0.2)
    assert few.figures["ttft p95"].relative > 0.2 >= found.figures["ttft p95"].relative and not few.precise
    assert len(found.replications) == found.precise["ttft p95"].took > 3 and found.precise["ttft p95"].reached
    # In turn they take seconds each, and five a second come: no number of replications would help.
    in_turn = deployed.deployment.model_copy(update={"engine": build(None, engine={"max_running": 1}).engine})
    overload = forecast(Deployed(in_turn), spec, SLO, replications=2, precision=0.01)
    assert [one.audit.steadiness.verdict for one in overload.replications] == ["unstable", "unstable"]
    assert not overload.precise["ttft p95"].reached


def test_what_cannot_hold_the_model_is_refused_with_what_would(model: str) -> None:
    with pytest.raises(ArmillaryError, match="narrower dtype would hold"):
        Deployed(deployment(model.replace("config.json", ""), replicas=[{"hardware": "l4"}]).model_copy(
            update={"engine": build(None, engine={"dtype": "float32"}).engine}
        ))  # fmt: skip
    settings = build(None, model={"path": model}, engine={"kv_blocks": 10**7})
    with pytest.raises(ArmillaryError, match=r"kv_blocks must be from 1 to \d+"):
        Deployed(settings.model_copy(update={"fleet": deployment(model, replicas=[{"hardware": "h100"}]).fleet}))


def test_a_machine_that_nothing_is_known_of_is_as_predicted() -> None:
    assert draw_factor(IdealCost(1.0), Random(0)) == 1.0


def test_the_command_line(model: str) -> None:
    arguments = ["simulate", model, "--hardware", "h100", "--replicas", "2", "--requests", "30", "--rate", "5",
                 "--replications", "2", "--slo", "ttft p95 1s", "--json"]  # fmt: skip
    result = CliRunner().invoke(build_app(arguments), arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["met_share"] == 1.0 and told["kinds"][0]["provenance"] == "assumed"
    assert told["figures"]["ttft p95"]["value"] > 0 and told["precision"] == {}
    more = [*arguments, "--precision", "0.9"]
    told = json.loads(CliRunner().invoke(build_app(more), more).stdout)
    assert told["precision"]["ttft p95"]["wanted"] == 0.9 and told["precision"]["ttft p95"]["reached"]
    assert "is known to" in CliRunner().invoke(build_app(more), [a for a in more if a != "--json"]).output
    single = [*arguments[:-1], "--replications", "1"]
    table = CliRunner().invoke(build_app(single), single).output
    assert "time to first token, p95" in table and "share" in table
    assert not re.search(r"inf|0\.0 ms to|0\.0% to", table), "one replication says nothing of the next"
    table = CliRunner().invoke(build_app(arguments), arguments[:-1])
    assert "time to first token, p95" in table.output and "assumed from data sheets" in table.output
    assert "is no family" not in table.output and "the service level held in 100%" in " ".join(table.output.split())
    free = [each for each in arguments[:-1] if each not in ("--slo", "ttft p95 1s")]
    told = CliRunner().invoke(build_app(free), free).output
    assert "2 replications" in told and "level held" not in " ".join(told.split())
    plan = Path(model).with_name("plan.json")
    plan.write_text(json.dumps({"armillary_plan": 1}))
    with pytest.raises(ArmillaryError, match=r"name the deployment.yaml"):
        Deployed(deployment(str(plan)))
    none = [*arguments[:-1], "--kv-blocks", "1"]
    assert "100.0% of the requests were refused" in CliRunner().invoke(build_app(none), none).output
    cut = [*arguments, "--until", "0.5"]
    assert list(json.loads(CliRunner().invoke(build_app(cut), cut).stdout)["lost"]) == ["unfinished"]
    with warnings.catch_warnings(action="error"):  # nothing came, and nothing is said of it
        never = [*arguments, "--until", "0"]
        assert json.loads(CliRunner().invoke(build_app(never), never).stdout)["lost"] == {}
    Path(model).write_text(json.dumps({**LLAMA, "model_type": "novel"}))
    assert "novel is no family that is known here" in CliRunner().invoke(build_app(arguments), arguments[:-1]).output
