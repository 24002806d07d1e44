"""The shipped profile, and the choice of a cost model by the name of the hardware."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from armillary.deployment import Deployment
from armillary.errors import ArmillaryError
from armillary.models.config import read_json
from armillary.models.locate import bundled_folder
from armillary.twin.analytic import AnalyticCost, Parallel
from armillary.twin.deployed import Deployed
from armillary.twin.fitted import FittedCost
from armillary.twin.here import cost_for
from armillary.twin.profile import PHASES, shipped_profile, stored_path
from armillary.twin.work import StepWork


@pytest.fixture
def isles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The bundled model's config.json, for a user who has measured nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return read_json(bundled_folder() / "config.json") or {}


def test_the_bundled_model_comes_with_a_profile(isles: dict[str, Any]) -> None:
    assert shipped_profile().done == list(PHASES)
    cost = cost_for(isles)
    assert isinstance(cost, FittedCost) and cost.through == "server" and cost.provenance == "fitted"
    assert cost.error is not None and cost.name == shipped_profile().name
    for work in (StepWork(1, 1, 1, 500, 500), StepWork(1, 512, 1, 512, 131_328), StepWork(64, 64, 64, 32_000, 32_000)):
        assert cost.inside(work), cost.hull.why_not(work)
        alone = cost_for(isles, through="engine")
        assert 0 < alone.step_s(work) < 10 and 0 < cost.step_s(work) < 10


def test_what_a_user_measured_goes_before_what_was_shipped(isles: dict[str, Any]) -> None:
    own = shipped_profile().model_copy(update={"begun": "2030-01-01 00:00:00", "finished": "2030-01-01 00:01:00"})
    own.save(stored_path(own))
    cost = cost_for(isles)
    assert isinstance(cost, FittedCost) and cost.profile.begun == own.begun


def test_hardware_is_chosen_by_name(isles: dict[str, Any]) -> None:
    assert isinstance(cost_for(isles, "H100", Parallel(tensor=2)), AnalyticCost)
    with pytest.raises(ArmillaryError, match="devices must be 1 on `here`, given 2"):
        cost_for(isles, "here", Parallel(tensor=2))
    with pytest.raises(ArmillaryError, match="dtype must be bfloat16, which was measured, given int4; run `armillary"):
        cost_for(isles, dtype="int4")
    with pytest.raises(ArmillaryError, match="hardware must be here or one of a100-40"):
        cost_for(isles, "abacus")


@pytest.mark.parametrize(
    ("hardware", "engine", "told"),
    [
        ("here", {"threads": 1}, r"threads must be 2, as was measured \(`armillary profile --threads` .* given 1"),
        ("here", {"int8_activations": True}, "int8_activations must be left out: .* not measured, given True"),
        ("h100", {"threads": 8}, "threads must be left out of what is worked out from a data sheet, .* given 8"),
        (
            "h100",
            {"dtype": "int4", "quantization_group": 128},
            "quantization_group must be 32 or left out: .* given 128",
        ),
    ],
)
def test_what_a_cost_model_does_not_know_is_refused(
    isles: dict[str, Any], hardware: str, engine: dict[str, Any], told: str
) -> None:
    fleet = {"replicas": [{"hardware": hardware}]}
    with pytest.raises(ArmillaryError, match=told):
        Deployed(Deployment.model_validate({"engine": engine, "fleet": fleet}))
    known = {"threads": 2} if hardware == "here" else {"dtype": "int4", "quantization_group": 32}
    Deployed(Deployment.model_validate({"engine": known, "fleet": fleet}))
