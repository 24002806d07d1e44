"""From a question to a deployment with reasons, end to end on a machine that is not at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from armillary.cli.main import build_app
from armillary.deployment import load
from armillary.errors import ArmillaryError
from armillary.plan.question import parse_budget, parse_rate

LLAMA = {
    "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 8192, "max_position_embeddings": 8192, "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}  # fmt: skip
FLAGS = [
    "--hardware", "l4", "--slo", "ttft p95 100ms, tpot p95 40ms", "--prompt-length", "uniform:50,150",
    "--output-length", "uniform:10,30", "--max-running", "32", "--max-step-tokens", "512", "--replications", "2",
]  # fmt: skip


def ask(folder: Path, *more: str) -> tuple[int, str]:
    (folder / "config.json").write_text(json.dumps(LLAMA))
    arguments = ["plan", str(folder / "config.json"), *FLAGS, "--out", str(folder / "out"), *more]
    result = CliRunner().invoke(build_app(arguments), arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_a_plan_is_said_written_and_the_same_again(tmp_path: Path) -> None:
    code, said = ask(tmp_path, "--rate", "60/s")
    assert code == 0
    for head in ("Verdict.", "Headroom.", "Bottleneck.", "Next change.", "Cost and energy.", "How far to trust this."):
        assert head in said
    assert "armillary bench" in said and "probability" in said
    first = (tmp_path / "out" / "plan.json").read_bytes()
    plan = json.loads(first)
    assert plan["knee"]["value"] > 0 and plan["design"]["max_running"] == 32 and plan["rate"] == 60
    assert len(plan["effects"]) >= 6 and plan["trust"]["provenance"] == "assumed"
    deployment = load(tmp_path / "out" / "deployment.yaml")
    assert deployment.fleet is not None and deployment.fleet.replicas[0].hardware == "l4"
    assert deployment.engine.kv_blocks and deployment.engine.max_running == 32
    assert "<svg" in (tmp_path / "out" / "plan.html").read_text()
    ask(tmp_path, "--rate", "60/s", "--json")
    assert (tmp_path / "out" / "plan.json").read_bytes() == first
    yaml.safe_load((tmp_path / "out" / "deployment.yaml").read_text())


def test_what_cannot_be_is_refused_with_what_can(tmp_path: Path) -> None:
    with pytest.raises(ArmillaryError, match="at least the price of one replica"):
        ask(tmp_path, "--rate", "60/s", "--budget", "0.01/h")
    with pytest.raises(ArmillaryError, match="not even single requests meet it"):
        ask(tmp_path, "--slo", "ttft p95 1us")
    with pytest.raises(ArmillaryError, match="given itl"):
        ask(tmp_path, "--slo", "itl p95 50ms")


def test_amounts() -> None:
    assert (parse_rate("20/s"), parse_rate("1200/min"), parse_rate("20")) == (20.0, 20.0, 20.0)
    assert (parse_budget("10/h"), parse_budget("10")) == (pytest.approx(10.0), pytest.approx(10.0))
    for wrong in ("fast", "0/s", "-3", "5/day"):
        with pytest.raises(ArmillaryError, match="an amount above 0"):
            parse_rate(wrong)
