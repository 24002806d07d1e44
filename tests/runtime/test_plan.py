"""The memory plan: its arithmetic, its choices with their reasons, and what it refuses with which numbers."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from armillary.core.request import Request
from armillary.core.step import Event
from armillary.deployment.engine import EngineSettings
from armillary.errors import ArmillaryError, Code
from armillary.models.config import spec_from_config
from armillary.models.spec import ModelSpec
from armillary.runtime.load import build_engine
from armillary.runtime.machine import Machine
from armillary.runtime.memory_plan import MemoryPlan
from armillary.runtime.plan import HEADROOM_SHARE, make_plan, workspace_bytes
from armillary.runtime.sampling import SamplingParams
from families import write
from small_tokenizers import byte_level, write_tokenizer

GIB = 1 << 30
MACHINE = Machine("Linux", "a CPU", ("avx2",), 4, 8, 8, 16 * GIB, 10 * GIB)
CONFIG = {
    "model_type": "qwen3", "vocab_size": 32000, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 1536, "max_position_embeddings": 8192,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip


def spec(**changes: Any) -> ModelSpec:
    return spec_from_config({**CONFIG, **changes})


def plan(machine: Machine = MACHINE, model: ModelSpec | None = None, **settings: Any) -> MemoryPlan:
    return make_plan(model or spec(), EngineSettings(**settings), machine, 20e9)


def reason(made: MemoryPlan, name: str) -> str:
    return next(value.reason for value in made.values if value.name == name)


def refused(code: Code, machine: Machine = MACHINE, model: ModelSpec | None = None, **settings: Any) -> ArmillaryError:
    with pytest.raises(ArmillaryError) as caught:
        plan(machine, model, **settings)
    assert caught.value.code is code
    assert "must" in caught.value.message and "given" in caught.value.message
    return caught.value


def test_parts_add_up_and_stay_within_what_there_is() -> None:
    made = plan()
    assert made.weights == spec().num_parameters() * 4
    assert made.kv == (made.num_blocks + 1) * 16 * spec().kv_bytes_per_token(4)
    assert made.total == made.weights + made.kv + made.workspace
    assert made.total + made.headroom <= made.available == MACHINE.available
    assert made.headroom == int(MACHINE.available * HEADROOM_SHARE)
    assert made.workspace == workspace_bytes(spec(), 512, 64, 4) > 64 * 32000 * 4


@pytest.mark.parametrize(
    ("features", "available", "dtype", "words"),
    [
        (("avx2",), 10 * GIB, "float32", "no native bfloat16"),
        (("avx512_bf16",), 10 * GIB, "bfloat16", "as in the checkpoint"),
        (("avx2",), GIB // 3, "bfloat16", "leave too little"),
    ],
)
def test_number_format_follows_machine_and_room(
    features: tuple[str, ...], available: int, dtype: str, words: str
) -> None:
    made = plan(dataclasses.replace(MACHINE, features=features, available=available))
    assert made.dtype == dtype and words in reason(made, "dtype")


def test_every_value_has_a_reason_and_given_ones_are_respected() -> None:
    given = {
        "dtype": "bfloat16", "kv_dtype": "float32", "kv_blocks": 300, "block_size": 32, "max_context": 1000,
        "max_step_tokens": 256, "max_running": 10, "threads": 3,
    }  # fmt: skip
    made = plan(**given)
    assert {value.name: value.value for value in made.values} == {"kernels": "torch", **given}
    assert all(value.reason == "set" for value in made.values if value.name != "kernels")
    assert all(value.reason not in ("", "set") for value in plan().values)


def test_blocks_are_what_is_useful_or_what_there_is() -> None:
    small = plan(max_context=100, max_running=4)
    assert small.num_blocks == 4 * 7 and "4 sequences of 100 tokens" in reason(small, "kv_blocks")
    tight = plan(dataclasses.replace(MACHINE, available=GIB))
    assert "60%" in reason(tight, "kv_blocks") and tight.total < GIB
    assert tight.max_context == min(8192, tight.num_blocks * 16)


def test_context_shrinks_to_the_pool_with_a_reason() -> None:
    made = plan(kv_blocks=10)
    assert made.max_context == 160 and "8192" in reason(made, "max_context")


def test_kv_memory_is_never_exceeded() -> None:
    made = plan(kv_memory=50_000_000)
    assert made.kv <= 50_000_000 < made.kv + 16 * spec().kv_bytes_per_token(4)


def test_steps_and_running_fit_each_other() -> None:
    assert plan(max_step_tokens=8).max_running == 8
    assert plan(max_running=1000).max_step_tokens == 1000
    assert refused(Code.INVALID_DEPLOYMENT, max_step_tokens=8, max_running=9).param == "max_step_tokens"


@pytest.mark.parametrize("name", ["kv_blocks", "kv_memory", "max_context"])
def test_too_much_is_refused_with_the_most_that_works(name: str) -> None:
    machine, model = dataclasses.replace(MACHINE, available=GIB), spec(max_position_embeddings=10**7)
    huge: dict[str, Any] = {"kv_blocks": 10**6, "kv_memory": 2 * GIB, "max_context": 10**6}
    error = refused(Code.MEMORY, machine, model, **{name: huge[name]})
    assert error.param == name
    found = re.search(r"must be at most ([\d.]+)( [KMG]iB)?", error.message)
    assert found is not None
    most = int(float(found[1]) * {None: 1, " MiB": 1 << 20, " GiB": GIB}[found[2]])
    if found[2] is None:
        assert plan(machine, model, **{name: most}).total < GIB
        refused(Code.MEMORY, machine, model, **{name: most + 16})
    else:  # a rounded size
        plan(machine, model, **{name: int(most * 0.99)})


def test_a_model_that_cannot_fit_is_refused_with_what_would() -> None:
    machine = dataclasses.replace(MACHINE, available=GIB)
    wide = refused(Code.MEMORY, machine, spec(hidden_size=4096, intermediate_size=4096), dtype="float32")
    assert "million parameters" in wide.message
    assert "bfloat16 would need" in refused(Code.MEMORY, machine, spec(num_hidden_layers=70), dtype="float32").message


def test_what_is_promised_to_other_engines_is_not_there_to_be_taken() -> None:
    small = spec(max_position_embeddings=131072)
    alone = make_plan(small, EngineSettings(), MACHINE)
    beside = make_plan(small, EngineSettings(), MACHINE, promised=4 * GIB)
    assert beside.num_blocks < alone.num_blocks and beside.available == MACHINE.available - 4 * GIB
    assert "promised" in str(beside) and "promised" not in str(alone)
    with pytest.raises(ArmillaryError) as caught:
        make_plan(small, EngineSettings(kv_blocks=10**7), MACHINE, promised=4 * GIB)
    found = re.search(r"must be at most (\d+)", caught.value.message)
    assert found is not None
    made = make_plan(small, EngineSettings(kv_blocks=int(found[1])), MACHINE, promised=4 * GIB)
    assert made.total + made.headroom <= MACHINE.available - 4 * GIB
    with pytest.raises(ArmillaryError, match="after the 10 GiB promised to other models") as caught:
        make_plan(small, EngineSettings(), MACHINE, promised=10 * GIB)
    assert caught.value.code is Code.MEMORY


def test_a_context_beyond_the_model_is_refused() -> None:
    error = refused(Code.INVALID_DEPLOYMENT, max_context=8193)
    assert "8192" in error.message and error.param == "max_context"


def test_speed_is_bandwidth_over_bytes() -> None:
    one, many = plan().speed
    weights, kv = spec().num_parameters() * 4, spec().kv_bytes_per_token(4) * 512
    assert (one.sequences, one.bytes) == (1, weights + kv)
    assert (many.sequences, many.bytes) == (16, weights + 16 * kv)
    assert many.tokens_per_s == pytest.approx(16 * 20e9 / many.bytes)


def test_the_plan_prints_and_becomes_json() -> None:
    made = plan()
    text = str(made)
    for word in ("weights", "KV cache", "headroom", "kv_blocks", "quick probe: 20.0 GB/s", "at most"):
        assert word in text
    assert json.loads(json.dumps(made.as_dict()))["num_blocks"] == made.num_blocks


def test_an_engine_is_built_as_planned_and_runs(tmp_path: Path) -> None:
    folder = write("qwen3", tmp_path / "model", vocab_size=512)
    write_tokenizer(folder, byte_level(), {})
    events: list[Event] = []
    settings = EngineSettings(kv_blocks=20, max_context=100, journal=tmp_path / "deep" / "journal.jsonl", seed=5)
    loaded = build_engine(folder, settings, events.extend)
    assert loaded.plan.num_blocks == loaded.engine.scheduler.config.num_blocks == 20
    assert loaded.engine.scheduler.config.max_context == 100 == loaded.spec.max_context
    assert all(seconds >= 0 for seconds in loaded.phases.values()) and "weights" in loaded.phases
    loaded.engine.submit(Request("a", (5, 6, 7), 4, sampling=SamplingParams(temperature=0)))
    loaded.engine.run_until_idle()
    assert len(events) == 4 and events[-1].error is None
    lines = (tmp_path / "deep" / "journal.jsonl").read_text().splitlines()
    assert len(lines) >= 6 and all(json.loads(line) for line in lines)
