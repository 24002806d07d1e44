"""The real engine measured, briefly: what is kept, what is not measured twice, what a server adds."""

from __future__ import annotations

from pathlib import Path

import pytest

from armillary.deployment import EngineSettings
from armillary.models.locate import bundled_folder, locate
from armillary.twin.fitted import FittedCost
from armillary.twin.here import measured_hardware
from armillary.twin.profile import PHASES, Profile
from armillary.twin.profile_settings import ProfileSettings
from armillary.twin.profiling import measure_profile
from armillary.twin.work import StepWork

SETTINGS = EngineSettings(max_running=8, max_step_tokens=64, max_context=256, kv_blocks=200, threads=1)


def test_a_profile_is_measured_kept_and_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    told: list[tuple[str, float]] = []

    def measure(again: bool = False) -> Profile:
        told.clear()
        brief = ProfileSettings(seconds=1.5, points=16, http=False)
        return measure_profile("isles", locate("isles"), SETTINGS, brief, out, lambda *news: told.append(news), again)[
            0
        ]

    first = measure()
    assert first.done == ["machine", "steps", "engine"] and first.finished and len(first.steps) >= 12
    assert all(told.index((phase, 1.0)) >= 0 for phase in ("machine", "engine"))
    cost = FittedCost(first)
    assert cost.through == "engine" and cost.step_s(StepWork(4, 4, 4, 400, 400)) > 0
    assert cost.inside(StepWork(1, 64, 1, 64, 2080)) and not cost.inside(StepWork(1, 65 * 2, 1, 130, 8515))
    assert cost.between_s(StepWork(1, 1, 1, 10, 10)) > 0
    assert measured_hardware(first).measured
    native = first.model_copy(update={"peaks": {"float32": 1e11, "bfloat16": 1e9}})
    # Where the processor has no such products, the kernels widen what they read; torch would not.
    assert measured_hardware(native).peak("bfloat16") == (1e9 if first.engine["kernels"] == "torch" else 1e11)

    half = Profile.load(out)
    half.done, half.finished = ["machine", "steps"], None
    half.save(out)
    second = measure()
    assert second.steps == first.steps and second.begun == first.begun
    assert {phase for phase, _ in told} == {"engine"}
    # Other settings are another profile: nothing of the old one would be taken over.
    assert second.model_copy(update={"engine": {**second.engine, "max_running": 4}}).key != second.key


@pytest.mark.slow
def test_a_server_with_clients_is_measured_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The server runs elsewhere, so that a path from here must reach it whole.
    monkeypatch.chdir(bundled_folder().parent)
    brief = ProfileSettings(seconds=12, points=24)
    found, path = measure_profile("./isles", Path("./isles"), SETTINGS, brief, tmp_path / "p.json", lambda *news: None)
    assert found.done == list(PHASES) and found == Profile.load(path)
    cost = FittedCost(found)
    assert cost.through == "server" and 0 < cost.request_s(100) < 5
    assert len(found.served.work) > 20
    assert FittedCost(found, "engine").request_s(100) == 0.0
