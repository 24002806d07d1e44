"""What the command line says about models that give vectors and scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from armillary.cli import doctor
from armillary.cli.main import run
from armillary.runtime.doctor import Diagnosis
from armillary.runtime.machine import read_machine
from armillary.runtime.speed import Rate

CONFIG = {"model_type": "roberta", "hidden_size": 24, "num_attention_heads": 2, "max_position_embeddings": 514}


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        run(list(arguments))
    captured = capsys.readouterr()
    assert left.value.code in (0, None), captured.err
    return captured.out


def test_the_families_say_what_they_give(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {
        f["model_type"]: f["gives"] for f in json.loads(said(capsys, "models", "--families", "--json"))["families"]
    }
    assert listed["bert"] == "vectors, scores" and listed["llama"] == "text, vectors"


def test_the_doctor_knows_encoders(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    rate = Rate(best=1e10, median=1e10, repeats=1)
    monkeypatch.setattr(doctor, "_measure", lambda: Diagnosis(read_machine(), 1, rate, {"float32": rate}))
    report = json.loads(said(capsys, "doctor", str(tmp_path), "--json"))
    assert report["ceilings"][0]["tokens"] > 0 and report["parameters"] > 1000
    assert "an encoder: at most" in said(capsys, "doctor", str(tmp_path))
