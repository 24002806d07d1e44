"""The estimate of a fleet is near the twin for kinds side by side and for prompts that are handed on."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from armillary.deployment import Deployment
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.measure.workload import Workload
from armillary.plan.estimate import Estimate, estimate
from armillary.plan.fleet_estimate import beside, fleet_estimate
from armillary.twin.deployed import Deployed
from armillary.twin.fleet import simulate_fleet

MIXED = {"replicas": [{"hardware": "l4"}, {"hardware": "h100", "count": 2}]}
SPLIT = {"replicas": [{"hardware": "h100", "role": "prefill"}, {"hardware": "h100", "role": "decode", "count": 2}]}
MODEL: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 8192, "max_position_embeddings": 8192, "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def deployed(tmp_path):
    def make(fleet: dict[str, Any], **engine: Any) -> Deployed:
        (tmp_path / "config.json").write_text(json.dumps(MODEL))
        engine = {"kv_blocks": 4096, "prefix_cache": False, **engine}
        said = {"models": [{"path": str(tmp_path / "config.json")}], "engine": engine, "fleet": fleet}
        return Deployed(Deployment.model_validate(said), vary=False)

    return make


def drawn(load: float, capacity: float, **more: Any) -> Workload:
    rate = {} if "users" in more else {"rate": load * capacity}
    lengths = {"prompt_length": "500", "output_length": "lognormal:60,0.7,300"}
    return synthesise(WorkloadSpec(requests=1500, seed=3, **lengths, **rate, **more))


def near(found: Estimate, deployed: Deployed, workload: Workload) -> None:
    result = simulate_fleet(deployed.fleet, deployed.build, workload)
    run = result.requests
    assert found.e2e_s == pytest.approx(float(np.nanmean(run.e2e)), rel=0.25)
    assert found.ttft_s == pytest.approx(float(np.nanmean(run.ttft)), rel=0.35)
    assert found.throughput == pytest.approx(
        float(np.mean(run.end < run.due.max())) * len(run) / run.due.max(), rel=0.15
    )
    per_token = (run.end - run.first) / np.maximum(1, run.output_tokens - 1)
    assert found.tpot_s == pytest.approx(float(np.nanmean(per_token)), rel=0.3)


def capacity(deployed: Deployed) -> float:
    return fleet_estimate(deployed, drawn(1.0, 1.0)).capacity


@pytest.mark.parametrize("load", [0.3, 0.7])
@pytest.mark.parametrize("fleet", [MIXED, SPLIT], ids=["mixed", "split"])
def test_means_are_near_the_twin(fleet, load, deployed):
    built = deployed(fleet)
    workload = drawn(load, capacity(built))
    near(fleet_estimate(built, workload), built, workload)


@pytest.mark.parametrize("fleet", [MIXED, SPLIT], ids=["mixed", "split"])
def test_users_who_think_are_answered_at_the_rate_of_the_twin(fleet, deployed):
    built = deployed(fleet)
    workload = drawn(0.0, 0.0, users=60, think=1.0)
    result = simulate_fleet(built.fleet, built.build, workload)
    found = fleet_estimate(built, workload)
    assert found.throughput == pytest.approx(len(result.requests) / result.duration_s, rel=0.15)


def test_who_gets_the_same_as_others_holds_all_up(deployed):
    by_load, alike = capacity(deployed(MIXED)), capacity(deployed({**MIXED, "route": "round_robin"}))
    slow = capacity(deployed({"replicas": [{"hardware": "l4"}]}))
    fast = capacity(deployed({"replicas": [{"hardware": "h100", "count": 2}]}))
    assert by_load == pytest.approx(slow + fast, rel=1e-6) and alike == pytest.approx(3 * slow, rel=1e-6)


def test_a_slow_link_is_what_holds_requests_up(deployed):
    built = deployed({**SPLIT, "link": {"bandwidth": 200_000_000}})
    sent = 500 * built.kinds[0].kv_bytes / 200e6
    assert capacity(built) == pytest.approx(1 / sent, rel=0.01)
    workload = drawn(0.6, capacity(built))
    near(fleet_estimate(built, workload), built, workload)
    assert not fleet_estimate(built, drawn(1.2, capacity(built))).stable


def test_one_kind_is_what_it_is_without_a_fleet(deployed):
    built = deployed({"replicas": [{"hardware": "l4", "count": 3}]})
    kind, workload = built.kinds[0], drawn(0.5, capacity(built))
    assert fleet_estimate(built, workload) == estimate(kind.config, kind.cost, workload, 3)
    thinking = drawn(0.0, 0.0, users=40, think=1.0)
    assert fleet_estimate(built, thinking) == estimate(kind.config, kind.cost, thinking, 3)


def test_sentences(deployed):
    for fleet in ({"replicas": [{"hardware": "l4"}]}, MIXED, SPLIT):
        (line,) = beside(deployed(fleet), drawn(0.1, 10.0))
        assert "capacity" in line and "TTFT" in line
        (line,) = beside(deployed(fleet), synthesise(WorkloadSpec(requests=20)))
        assert "more comes" in line
    scaling = {"replicas": [{"hardware": "l4"}], "scaling": {"least": 1, "most": 4}}
    (line,) = beside(deployed(scaling), drawn(0.1, 10.0))
    assert "of the most replicas that there may be, 4: capacity" in line
    assert math.isclose(capacity(deployed(scaling)), 4 * capacity(deployed({"replicas": [{"hardware": "l4"}]})))
