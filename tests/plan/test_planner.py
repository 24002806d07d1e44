"""From a question to a deployment with reasons, end to end on a machine that is not at hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from armillary.cli.main import build_app
from armillary.core.config import SchedulerConfig
from armillary.deployment import Deployment, build, load
from armillary.errors import ArmillaryError, Code
from armillary.measure.slo import Slo
from armillary.measure.synthesis import WorkloadSpec
from armillary.plan import planner as planner_module
from armillary.plan.deployment_file import text
from armillary.plan.designs import Design
from armillary.plan.question import Question, again, parse_budget, parse_price, parse_rate
from armillary.plan.search import Knee

LLAMA = {
    "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 8192, "max_position_embeddings": 8192, "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}  # fmt: skip
FLAGS = [
    "--hardware", "l4", "--slo", "ttft p95 100ms, tpot p95 40ms", "--prompt-length", "uniform:50,150",
    "--output-length", "uniform:10,30", "--max-running", "32", "--max-step-tokens", "512", "--replications", "2",
    "--processes", "1",
]  # fmt: skip


def ask(folder: Path, *more: str) -> tuple[int, str]:
    (folder / "config.json").write_text(json.dumps(LLAMA))
    arguments = ["plan", "--model", str(folder / "config.json"), *FLAGS, "--out", str(folder / "out"), *more]
    result = CliRunner().invoke(build_app(arguments), arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_requests_longer_than_the_context_do_not_decide_how_many_machines_it_takes(tmp_path: Path) -> None:
    """Where the share of them is just what the service level lets miss it, chance would: more machines never help."""
    lengths = [
        "--prompt-length",
        "lognormal:500,1.5,20000",
        "--output-length",
        "20",
        "--slo",
        "ttft p95 2s, tpot p95 40ms",
    ]
    code, said = ask(tmp_path, "--rate", "2/s", *lengths)
    plan = json.loads((tmp_path / "out" / "plan.json").read_bytes())
    assert code == 0 and 0 < plan["too_long_share"] < 0.05 and plan["design"]["replicas"] == 1
    assert "of the requests have more tokens than the model's context" in " ".join(said.split())
    with pytest.raises(ArmillaryError, match="100%") as refusal:  # nothing is left to plan for
        ask(tmp_path, "--rate", "2/s", *lengths[:4], "--slo", "itl p95 40ms", "--prompt-length", "9000")
    assert refusal.value.code is Code.CANNOT_FIT


def test_a_plan_is_said_written_and_the_same_again(tmp_path: Path) -> None:
    code, said = ask(tmp_path, "--rate", "60/s", "--price", "0.5/h", "--power", "100", "--budget", "1/h")
    assert code == 0
    for head in ("Verdict", "Headroom", "Bottleneck", "Next change", "Cost and energy", "Check it"):
        assert f"{head} (assumed)." in said  # of a data sheet, all of it
    assert "Little's, utilisation, forced flow, bottleneck hold in 2 of 2." in said.replace("\n", " ")
    assert "How far to trust this." in said and "forecast (assumed)" in said
    assert "armillary bench" in said and "probability" in said
    assert f"armillary compare {tmp_path}/out/plan.json load.json" in said.replace("\n", "")  # as it is to be typed
    first = (tmp_path / "out" / "plan.json").read_bytes()
    plan = json.loads(first, parse_constant=pytest.fail)  # there is no Infinity in JSON
    assert plan["knee"]["value"] > 0 and plan["design"]["max_running"] == 32 and plan["rate"] == 60
    assert len(plan["effects"]) >= 6 and plan["trust"]["provenance"] == "assumed"
    low, high = (plan["load_test"]["expected"]["ttft p95"][end] for end in ("low", "high"))
    assert (
        low < plan["figures"]["ttft p95"]["low"] < plan["figures"]["ttft p95"]["high"] < high
    )  # one run scatters more
    deployment = load(tmp_path / "out" / "deployment.yaml")
    assert deployment.fleet is not None and deployment.fleet.replicas[0].hardware == "l4"
    assert deployment.engine.kv_blocks and deployment.engine.max_running == 32
    page = (tmp_path / "out" / "plan.html").read_text()
    assert "single replica, rate found" in page and "designs were simulated" in page
    yaml.safe_load((tmp_path / "out" / "deployment.yaml").read_text())
    # The plan knows what was asked, and asked again it says the same.
    written = [tmp_path / "again" / name for name in ("plan.json", "deployment.yaml", "plan.html")]
    arguments = ["plan", str(tmp_path / "out" / "plan.json"), "--processes", "2", "--out", str(tmp_path / "again")]
    result = CliRunner().invoke(build_app(arguments), arguments)
    assert result.exit_code == 0, result.output
    assert all(path.read_bytes() == (tmp_path / "out" / path.name).read_bytes() for path in written)
    assert "may differ" not in result.output and plan["basis"]["version"]
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": 15}))
    changed = CliRunner().invoke(build_app(arguments), arguments)
    assert "may differ" in changed.output and "the model's config.json has changed" in changed.output.replace("\n", " ")
    assert set(plan["provenance"].values()) == {"assumed"}
    cost = plan["cost_per_1000_requests"]  # of a machine whose price and power were given
    assert cost["dollars"] == [pytest.approx(1000 / 60 / 3600 * 0.5)] * 2
    assert "(as given)" in said and "full power as given" in said.replace("\n", " ")


def test_a_plan_that_is_asked_again_is_asked_the_same(tmp_path: Path) -> None:
    kept = Question(
        build(None, model={"path": "isles"}, engine={"max_running": 8}, server={"port": 1}), "l4",
        WorkloadSpec(requests=7, prompt_length="50"), Slo.parse("ttft p95 1s"), 3.0, 2.0, 4, False, ("max_running",),
        0.5,
    )  # fmt: skip
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"armillary_plan": 1, "question": kept.as_dict()}))
    assert again(str(file), {"rate": None}) == (kept, None)
    with pytest.raises(ArmillaryError, match="--check-rate must be left out with a plan.json, .* given 5"):
        again(str(file), {"check_rate": 5})
    assert again("isles", {"rate": 5}) is None and again(str(tmp_path / "none.json"), {}) is None
    # What lets clients in is in no report; without it, the question is another.
    secret = replace(kept, deployment=build(None, server={"api_keys": ["secret"]}))
    assert secret.as_dict() is None
    file.write_text(json.dumps({"armillary_plan": 1, "question": None}))
    with pytest.raises(ArmillaryError, match="must hold its question to be made again"):
        again(str(file), {})
    for name, value, why in (
        ("rate", "fast", "rate must be"),
        ("replications", 10**12, "replications must be at most 1000"),
        ("changed", ["max_runing"], "changed.*must name settings of the engine, given 'max_runing'"),
    ):
        file.write_text(json.dumps({"armillary_plan": 1, "question": {**(kept.as_dict() or {}), name: value}}))
        with pytest.raises(ArmillaryError, match=why):
            again(str(file), {})


def test_a_fleet_of_which_nothing_can_be_planned_is_refused(tmp_path: Path) -> None:
    def asked(**fleet: object) -> Question:
        deployment = Deployment.model_validate({"fleet": fleet})
        return Question(deployment, "l4", WorkloadSpec(), Slo.parse("ttft p95 1s"))

    asked(replicas=[{"hardware": "l4", "count": 3, "tensor_parallel": 2}], route="round_robin")
    for fleet, what in (
        ({"failures": {"every_s": 5}}, "given failures, so ask"),
        ({"replicas": [{"hardware": "l4"}, {"hardware": "h100"}]}, "of several kinds"),
        ({"replicas": [{"hardware": "l4", "pipeline_parallel": 2}]}, "replicas.pipeline_parallel"),
    ):
        with pytest.raises(ArmillaryError, match=what):
            asked(**fleet)
    with pytest.raises(ArmillaryError, match="users must be left out of a plan"):
        replace(asked(), spec=WorkloadSpec(users=3))


def test_a_deployment_file_names_its_hardware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Question] = []

    def answer(question: Question, *_: object) -> None:
        asked.append(question)
        raise ArmillaryError(Code.CANNOT_FIT, "enough")

    monkeypatch.setattr("armillary.plan.planner.answer", answer)
    (tmp_path / "asked.yaml").write_text("fleet: {replicas: [{hardware: l4}]}\n")
    for flags, hardware in (([], "l4"), (["--hardware", "h100"], "h100")):
        arguments = ["plan", str(tmp_path / "asked.yaml"), *flags]
        assert CliRunner().invoke(build_app(arguments), arguments).exception is not None
        assert asked[-1].hardware == hardware


def test_a_plan_is_found_from_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(
        design=Design(1, 8, 512),
        question=Question(build(None, model={"path": "./config.json"}), "l4", WorkloadSpec(), Slo()),
        deployed=SimpleNamespace(kinds=[SimpleNamespace(config=SchedulerConfig(16, 512))]),
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "deployment.yaml").write_text(text(found))  # type: ignore[arg-type]
    assert load(tmp_path / "plan" / "deployment.yaml").model.path == str(tmp_path / "config.json")


def test_a_model_that_says_too_little_is_refused_as_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArmillaryError, match="must be given") as refusal:
        build_app(["plan"])(["plan", str(tmp_path / "config.json"), "--hardware", "l4"], standalone_mode=False)
    assert refusal.value.code is Code.UNSUPPORTED_MODEL


def test_what_cannot_be_is_refused_with_what_can(tmp_path: Path) -> None:
    with pytest.raises(ArmillaryError, match="at least the price of one replica"):
        ask(tmp_path, "--rate", "60/s", "--budget", "0.01/h")
    with pytest.raises(ArmillaryError, match="rate must be one that 4096 replicas serve, given 1,000,000 requests/s"):
        ask(tmp_path, "--rate", "1000000/s")
    with pytest.raises(ArmillaryError, match="budget must go with hardware whose price is known, given here"):
        ask(tmp_path, "--hardware", "here", "--budget", "1/h")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArmillaryError, match="out must be a folder that can be written into"):
        ask(tmp_path, "--out", str(tmp_path / "file"))
    with pytest.raises(ArmillaryError, match="not even single requests meet it"):
        ask(tmp_path, "--slo", "ttft p95 1us")
    with pytest.raises(ArmillaryError, match="at most 8192 tokens with their answers, given 100% of this workload"):
        ask(tmp_path, "--rate", "1/s", "--prompt-length", "9000")


def test_what_is_said_names_what_it_rests_on_and_goals_may_be_for_gaps(tmp_path: Path) -> None:
    code, said = ask(tmp_path, "--slo", "ttft p95 100ms, itl p95 30ms")
    assert code == 0
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert "itl p95 30ms" in said and "itl p95" in plan["load_test"]["expected"]
    assert 0 < plan["figures"]["itl p50"]["value"] <= 0.03
    assert "80% of what it serves at most, since no rate was asked" in said
    assert "of 2 simulations" in said and sum(plan["trust"]["steady"].values()) == 2
    named = [one for one in plan["effects"] if one["resource"] not in (None, "replicas")]
    best = max(named, key=lambda one: one["knee"])
    assert plan["bottleneck"] == (best["resource"] if best["matters"] and best["knee"] > 1 else "none that stands out")
    # A faster machine serves no less: the same requests come, only closer together.
    faster = next(one for one in plan["effects"] if one["name"] == "a device a quarter faster")
    assert faster["knee"] >= 1 and faster["ttft_p95"] < 1


def test_a_check_is_of_what_is_at_hand(tmp_path: Path) -> None:
    with pytest.raises(ArmillaryError, match="check must go with hardware that is at hand, given l4"):
        ask(tmp_path, "--rate", "60/s", "--check")
    with pytest.raises(ArmillaryError, match="model must be given once, as MODEL.FILE or as --model, given 'isles'"):
        ask(tmp_path, "isles")
    with pytest.raises(ArmillaryError, match="check_seconds must come with --check"):
        ask(tmp_path, "--rate", "60/s", "--check-seconds", "5")


@pytest.mark.slow
def test_a_plan_is_checked_by_serving_it(tmp_path: Path) -> None:
    arguments = ["plan", "isles", "--rate", "4/s", "--slo", "ttft p95 2s", "--max-running", "16", "--out"]
    arguments += [str(tmp_path / "out"), "--max-step-tokens", "256", "--replications", "3", "--output-length", "8"]
    arguments += ["--processes", "1", "--check", "--check-seconds", "3", "--json"]
    result = CliRunner().invoke(build_app(arguments), arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    checked = {one["name"]: one for one in told["check"]}
    assert {"ttft p50", "ttft p95", "tpot p50", "tpot p95", "e2e p50", "e2e p95"} <= set(checked)
    for name in ("ttft p50", "tpot p50"):
        first, second = checked[name]["first"], checked[name]["second"]
        assert second["value"] > 0 and first["low"] < first["high"]
        assert (checked[name]["verdict"] == "inside") == (first["low"] <= second["value"] <= first["high"])
    assert "check" not in json.loads((tmp_path / "out" / "plan.json").read_text())


def test_amounts() -> None:
    assert (parse_rate("20/s"), parse_rate("1200/min"), parse_rate("20")) == (20.0, 20.0, 20.0)
    assert (parse_budget("10/h"), parse_budget("10"), parse_budget("1/min")) == (10.0, 10.0, 60.0)
    assert (parse_price("0.03/h"), parse_price(".11"), parse_rate("5.")) == (0.03, 0.11, 5.0)  # to the last digit
    for wrong in ("fast", "0/s", "-3", "5/day", "9" * 400):
        with pytest.raises(ArmillaryError, match="an amount above 0"):
            parse_rate(wrong)


class Replicas:
    """Stands for simulations: so many replicas hold the service level, fewer never do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, enough: int, budget: float | None, price: float) -> None:
        self.tried: list[int] = []
        question = Question(Deployment(), "l4", WorkloadSpec(), Slo(), budget=budget, price=price, replications=4)
        hardware = SimpleNamespace(hardware=SimpleNamespace(name="l4"))
        self.trials: Any = SimpleNamespace(question=question, deployed=lambda design: SimpleNamespace(kinds=[hardware]))
        self.crew: Any = SimpleNamespace(each=lambda what, asked: (one[0].replicas >= enough for one in asked))

        def forecast(crew: object, question: Question, design: Design, *_: object, **__: object) -> Any:
            self.tried.append(design.replicas)
            held = design.replicas >= enough
            return SimpleNamespace(met_share=float(held), replications=[SimpleNamespace(met=held)] * 4)

        monkeypatch.setattr(planner_module, "_forecast", forecast)

    def sized(self, rate: float, peak: float = 1.0) -> int:
        """Replicas that are chosen, of which each serves one request a second."""
        chosen = planner_module._sized(
            self.trials, self.crew, Design(1, 8, 512), Knee(1.0, 1.0), rate, peak, lambda what, share: None
        )
        return chosen[0].replicas


def test_all_replicas_that_a_budget_buys_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Replicas(monkeypatch, enough=17, budget=17.0, price=1.0).sized(16.0) == 17
    assert Replicas(monkeypatch, enough=20, budget=None, price=1.0).sized(16.0) == 20
    few = Replicas(monkeypatch, enough=18, budget=17.0, price=1.0)
    with pytest.raises(ArmillaryError, match=r"at most 17 x 1 devices, which meet it in 0 of 4 simulations at that"):
        few.sized(16.0)
    assert few.tried == [16, 17]
    with pytest.raises(ArmillaryError, match=r"for 15 requests/s .* which serve about 8.5/s"):  # as it was asked
        Replicas(monkeypatch, enough=1, budget=17.0, price=1.0).sized(30.0, peak=2.0)


def test_a_budget_buys_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Replicas(monkeypatch, enough=3, budget=0.3, price=0.1).sized(3.0) == 3
