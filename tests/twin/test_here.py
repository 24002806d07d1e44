"""The shipped profile, and the choice of a cost model by the name of the hardware."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from armillary.deployment import Deployment
from armillary.errors import ArmillaryError
from armillary.models.config import read_json
from armillary.models.locate import bundled_folder
from armillary.runtime.machine import read_machine
from armillary.twin.analytic import AnalyticCost, Parallel
from armillary.twin.deployed import Deployed, profile_of
from armillary.twin.fitted import FittedCost
from armillary.twin.here import Served, cost_for, profile_for
from armillary.twin.profile import PHASES, Profile, shipped_profile, stored_path
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


def measured(**engine: Any) -> Profile:
    """A profile of this machine, with other settings of the engine than the shipped one."""
    machine, shipped = read_machine(), shipped_profile()
    here = {
        "cpu": machine.cpu,
        "features": list(machine.features),
        "physical_cores": machine.physical_cores,
    }
    found = shipped.model_copy(
        update={"machine": shipped.machine | here, "engine": shipped.engine | engine, "finished": "2030-01-01 00:01:00"}
    )
    found.save(stored_path(found))
    return found


def served(**other: Any) -> Served:
    engine = shipped_profile().engine
    told = {name: engine[name] for name in ("dtype", "kv_dtype", "kernels", "threads")}
    return Served(**{"int8_activations": False, "quantization_group": None, **told, **other})


def test_of_several_profiles_the_one_is_taken_that_is_of_what_is_served(isles: dict[str, Any]) -> None:
    whole = measured()
    fewer = measured(threads=1)
    narrow = measured(dtype="int8")
    fast = measured(dtype="int8", int8_activations=True)
    wide = measured(dtype="int4", quantization_group=64)
    assert len({found.key for found in (whole, fewer, narrow, fast, wide)}) == 5

    def taken(**other: Any) -> dict[str, Any]:
        return profile_for(isles, lambda: served(**other)).engine

    assert taken() == whole.engine and taken(threads=1) == fewer.engine
    assert taken(dtype="int8") == narrow.engine and taken(dtype="int8", int8_activations=True) == fast.engine
    assert taken(dtype="int4", quantization_group=64) == wide.engine
    deployment = Deployment.model_validate({"engine": {"dtype": "int4", "quantization_group": 64}})
    assert profile_of(deployment).engine == wide.engine
    (kind,) = Deployed(deployment).kinds
    assert isinstance(kind.cost, FittedCost) and kind.cost.profile.engine == wide.engine


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ({"dtype": "int4"}, "quantization_group must be 64: how long steps take with others was not measured, given N"),
        ({"dtype": "int8"}, "int8_activations must be set: how long steps take without it was not measured, given Fal"),
    ],
)
def test_what_was_measured_otherwise_only_is_refused(isles: dict[str, Any], engine: dict[str, Any], told: str) -> None:
    measured(dtype="int4", quantization_group=64)
    measured(dtype="int8", int8_activations=True)
    with pytest.raises(ArmillaryError, match=told):
        Deployed(Deployment.model_validate({"engine": engine}))


@pytest.mark.parametrize(
    ("engine", "chosen"),
    [
        ({"max_step_tokens": 8}, (8, 8)),
        ({"max_running": 1000}, (1000, 1000)),
        ({"max_running": 16, "max_step_tokens": 128}, (16, 128)),
    ],
)
@pytest.mark.parametrize("hardware", ["here", "h100"])
def test_budgets_are_chosen_as_a_server_chooses_them(
    isles: dict[str, Any], hardware: str, engine: dict[str, Any], chosen: tuple[int, int]
) -> None:
    deployment = {"engine": {**engine, "kv_blocks": 256}, "fleet": {"replicas": [{"hardware": hardware}]}}
    config = Deployed(Deployment.model_validate(deployment)).kinds[0].config
    assert (config.max_running, config.max_step_tokens) == chosen


@pytest.mark.parametrize("hardware", ["here", "h100"])
@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ({"max_context": 10**6}, "max_context must be at most 4096, what the model was made for, given 1000000"),
        ({"max_context": 2000, "kv_blocks": 100}, "max_context must be at most 1600, given 2000: .*100 .*blocks"),
        ({"max_running": 9, "max_step_tokens": 8}, "max_step_tokens must be at least max_running, given 8 and 9"),
    ],
)
def test_what_a_server_refuses_is_not_simulated(
    isles: dict[str, Any], hardware: str, engine: dict[str, Any], told: str
) -> None:
    with pytest.raises(ArmillaryError, match=told):
        Deployed(Deployment.model_validate({"engine": engine, "fleet": {"replicas": [{"hardware": hardware}]}}))
