"""The verbs on the bundled model, in this process: what people type, and what they see."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from armillary.cli.main import EXIT_CODES, run
from armillary.errors import Code
from armillary.kernels import native
from armillary.models.locate import bundled_folder
from quantized_checkpoints import Kind, quantized_folder

SMALL = ["--threads", "1", "--kv-blocks", "64", "--max-context", "512"]


def output_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Standard output of a command that must succeed."""
    with pytest.raises(SystemExit) as left:
        run(list(arguments))
    captured = capsys.readouterr()
    assert left.value.code in (0, None), captured.err
    return captured.out


def refusal_of(capsys: pytest.CaptureFixture[str], code: Code, *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        run(list(arguments))
    captured = capsys.readouterr()
    assert left.value.code == EXIT_CODES[code], captured.err
    assert captured.out == ""
    return captured.err


def test_generate_prints_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["generate", "What is 12 + 30?", "--chat", "--temperature", "0", "--max-tokens", "8", *SMALL]
    text = output_of(capsys, *asked)
    answer = json.loads(output_of(capsys, *asked, "--json"))
    assert answer["text"] + "\n" == text
    assert answer["model"] == "isles"


def test_generate_reads_standard_input_and_draws_the_same_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    for seed in ("1", "1", "2"):
        monkeypatch.setattr("sys.stdin", io.StringIO("On the island"))
        drawn.append(output_of(capsys, "generate", "-", "--seed", seed, "--temperature", "2", *SMALL))
    assert drawn[0] == drawn[1] != drawn[2]


def test_chat_answers_lines_from_a_pipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ask = ["chat", "--temperature", "0", "--max-tokens", "8", *SMALL]
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 12 + 30?\n"))
    once = output_of(capsys, *ask)
    assert once.strip()
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 12 + 30?\n/new\n\nWhat is 12 + 30?\n/undo\n/quit\nnever"))
    assert output_of(capsys, *ask) == once * 2, "/new forgets, so the answer is the same"


def test_eval_prints_levels_beside_the_aims(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--count", "2", "--task", "addition", "--task", "description", "--passages", "2"]
    found = json.loads(output_of(capsys, "eval", "isles", *few, "--wrong", "1", "--json", *SMALL))
    levels, read = found["levels"], found["perplexity"]
    assert read["texts"] == 2 and read["tokens"] > 20 and read["value"] > 1
    assert {level["task"]: level["aim"] for level in levels} == {"addition": 0.95, "description": None}
    assert all(level["count"] == 2 and 0 <= level["right"] <= 2 for level in levels)
    table = output_of(capsys, "eval", "isles", "--count", "1", "--task", "addition", "--passages", "0", *SMALL)
    assert re.search(r"addition.*95%", table) and "perplexity" not in table


@pytest.mark.skipif(not native.paths(), reason="the native kernels were not built")
def test_eval_says_what_quantising_costs(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["eval", "isles", "--count", "1", "--task", "addition", "--passages", "2", *SMALL]
    plain = json.loads(output_of(capsys, *few, "--json"))
    found = json.loads(output_of(capsys, *few, "--dtype", "int4", "--json"))
    assert plain["unquantised"] is None and found["unquantised"] == plain["perplexity"] != found["perplexity"]
    change = found["perplexity"]["value"] / plain["perplexity"]["value"] - 1
    table = output_of(capsys, *few, "--dtype", "int4")
    assert f"{plain['perplexity']['value']:.4f}: quantising changes it by {change:+.2%}" in table


@pytest.mark.skipif(not native.paths(), reason="the native kernels were not built")
def test_eval_says_what_8_bit_activations_cost_a_quantised_checkpoint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "quantized"
    quantized_folder(bundled_folder(), folder, tmp_path / "values", Kind())
    few = ["eval", "isles", str(folder), "--count", "1", "--task", "addition", "--passages", "2", "--json", *SMALL]
    plain, found = (json.loads(output_of(capsys, *few, *more)) for more in ([], ["--int8-activations"]))
    assert plain["unquantised"] is None and found["unquantised"] == plain["perplexity"] != found["perplexity"]


def test_eval_refuses_an_unknown_task(capsys: pytest.CaptureFixture[str]) -> None:
    error = refusal_of(capsys, Code.INVALID_REQUEST, "eval", "isles", "--task", "juggling", *SMALL)
    assert "juggling" in error and "addition" in error


def test_models_lists_the_bundled_one_and_the_families(capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(output_of(capsys, "models", "--json"))
    assert listed["models"][0]["name"] == "isles"
    assert {family["model_type"] for family in listed["families"]} >= {"llama", "qwen3", "gemma3_text"}
    assert "Gemma 2" in output_of(capsys, "models", "--families")


def test_doctor_says_what_the_machine_does(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output_of(capsys, "doctor", "--json"))
    assert found["diagnosis"]["bandwidth"]["best"] > 0
    assert {ceiling["dtype"] for ceiling in found["ceilings"]} >= {"float32", "bfloat16"}
    assert all(ceiling["fits"] for ceiling in found["ceilings"])


def test_claims_are_listed_without_being_measured(capsys: pytest.CaptureFixture[str]) -> None:
    claims = json.loads(output_of(capsys, "claims", "--list", "--json"))
    assert len(claims) >= 4
    error = refusal_of(capsys, Code.NOT_FOUND, "claims", "phlogiston")
    assert "phlogiston" in error and claims[0]["name"] in error


def test_a_model_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = refusal_of(capsys, Code.MODEL_NOT_FOUND, "generate", "x", "--model", str(tmp_path / "none"))
    assert "there is no such folder" in error


def test_engine_flags_and_a_url_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    error = refusal_of(capsys, Code.INVALID_DEPLOYMENT, "generate", "x", "--url", "http://127.0.0.1:9", *SMALL)
    assert "--threads" in error and "--url" in error


def test_bench_says_what_cannot_be_reached_and_what_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    refusal_of(capsys, Code.UNREACHABLE, "bench", "--url", "http://127.0.0.1:9", "--requests", "1")
    error = refusal_of(capsys, Code.INVALID_DEPLOYMENT, "bench", "--requests", "0")
    assert error.startswith("armillary: --requests must be greater than 0, given 0")
    assert "--extra-body" in refusal_of(capsys, Code.INVALID_DEPLOYMENT, "bench", "--extra-body", "{")
