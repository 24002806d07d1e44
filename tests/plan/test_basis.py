"""A plan knows what it rests on besides its question, and names its files so that it can be asked from anywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from armillary.deployment import build
from armillary.measure.slo import Slo
from armillary.measure.synthesis import WorkloadSpec
from armillary.measure.workload import WorkItem, Workload
from armillary.plan.basis import basis, changes, rooted
from armillary.plan.question import Question
from armillary.twin.profile import shipped_profile, stored_path

LLAMA = {
    "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1000,
    "intermediate_size": 512, "max_position_embeddings": 512, "torch_dtype": "bfloat16",
}  # fmt: skip


def asked(model: str, hardware: str, **spec: object) -> Question:
    return Question(build(None, model={"path": model}), hardware, WorkloadSpec(**spec), Slo.parse("ttft p95 1s"))


def test_files_are_named_by_their_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "lengths.jsonl").write_text('{"prompt_tokens": 5, "output_tokens": 3}\n')
    (tmp_path / "rates").write_text("1 2")
    (tmp_path / "isles").mkdir()
    Workload([WorkItem(id="a", arrival=1.0, prompt_tokens=5, output_tokens=3)]).write(tmp_path / "w.jsonl")
    found = rooted(asked("./config.json", "l4", workload="w.jsonl"))
    assert found.deployment.model.path == str(tmp_path / "config.json")
    assert found.spec.workload == str(tmp_path / "w.jsonl")
    drawn = {"prompt_length": "trace:lengths.jsonl", "output_length": "geometric:6", "arrivals": "profile:rates,60"}
    spec = rooted(asked("isles", "here", **drawn)).spec
    assert spec.prompt_length == f"trace:{tmp_path}/lengths.jsonl" and spec.output_length == "geometric:6"
    assert spec.arrivals == f"profile:{tmp_path}/rates,60" and spec.model_fields_set == set(drawn)
    hub = rooted(asked("some/model", "l4", workload="chat"))
    assert hub.deployment.model.path == "some/model" and hub.spec.workload == "chat"
    assert rooted(asked("isles", "here")).deployment.model.path == "isles", "the bundled model, whatever lies beside"
    assert rooted(rooted(found)) == rooted(found) == found


def test_what_an_answer_rests_on_is_told_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "rates").write_text("1 2")
    question = asked("isles", "here", arrivals=f"profile:{tmp_path}/rates")
    before = basis(question)
    assert before["profile"]["name"] == shipped_profile().name and changes(before, basis(question)) == []
    own = shipped_profile().model_copy(update={"begun": "2030-01-01 00:00:00", "finished": "2030-01-01 00:01:00"})
    own.save(stored_path(own))
    (tmp_path / "rates").write_text("1 3")
    news = changes(before, basis(question))
    assert len(news) == 2 and news[1] == "a file that its workload names has changed"
    assert news[0].startswith("its profile was ") and news[0].endswith("of 2030-01-01 00:00:00 UTC")
    assert changes({**before, "version": "0.0.1"}, before)[0].startswith("it was made by armillary 0.0.1, and this is ")
    assert len(changes({**before, "profile": "x", "files": 3}, before)) == 2
    assert changes(None, before) == ["it does not say what it rested on"]
    sheet = basis(replace(question, hardware="l4"))
    assert "profile" not in sheet and "hardware" in sheet
    assert changes({**sheet, "hardware": "other", "model": "other"}, sheet) == [
        "the model's config.json has changed", "the data sheet of its hardware has changed",
    ]  # fmt: skip
