"""Engines on the native kernels: true plans, settings obeyed or refused, answers near those of torch."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("armillary.kernels._native")

import torch
from safetensors.torch import load_file, save_file

from armillary.core.request import Request
from armillary.core.step import Event
from armillary.deployment.engine import EngineSettings
from armillary.errors import ArmillaryError, Code
from armillary.kernels import native
from armillary.models import packed_cache
from armillary.models.checkpoint import load_decoder, save_decoder
from armillary.models.config import read_config
from armillary.runtime import load, native_load
from armillary.runtime.load import LoadedEngine, build_engine
from armillary.runtime.machine import Machine
from armillary.runtime.native_plan import Kernels
from armillary.runtime.plan import make_plan
from armillary.runtime.sampling import SamplingParams
from families import write
from quantized_checkpoints import Kind, quantized_folder
from small_tokenizers import byte_level, write_tokenizer

MACHINE = Machine("Linux", "a CPU", ("avx2",), 4, 8, 8, 16 << 30, 10 << 30)
SIZES = {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 192, "head_dim": 32, "vocab_size": 512}
PROMPT = tuple(range(5, 95))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made("qwen3", tmp_path_factory.mktemp("model"), **SIZES)


def made(name: str, folder: Path, **changes: Any) -> Path:
    write(name, folder, **changes)
    write_tokenizer(folder, byte_level(), {})
    return folder


def built(folder: Path, **settings: Any) -> tuple[LoadedEngine, list[Event]]:
    events: list[Event] = []
    given = {"kv_blocks": 40, "max_context": 160, "threads": 1, **settings}
    return build_engine(folder, EngineSettings(**given), events.extend), events


def answer(folder: Path, count: int = 8, **settings: Any) -> list[int]:
    loaded, events = built(folder, **settings)
    loaded.engine.submit(Request("a", PROMPT, count, sampling=SamplingParams(temperature=0)))
    loaded.engine.run_until_idle()
    assert not any(event.error for event in events)
    return [event.token for event in events if event.token is not None]


def logprobs(folder: Path, **settings: Any) -> list[float]:
    loaded, events = built(folder, **settings)
    params = SamplingParams(temperature=0, prompt_logprobs=0)
    loaded.engine.submit(Request("a", PROMPT, 1, sampling=params, reuse_prefix=False))
    loaded.engine.run_until_idle()
    (found,) = [event.prompt_detail for event in events if event.prompt_detail is not None]
    return [entry.logprob for entry in found if entry is not None]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "bound"),
    [({}, 1e-4), ({"dtype": "bf16"}, 0.15), ({"dtype": "int8"}, 0.15), ({"kv_dtype": "int8"}, 0.15),
     ({"dtype": "int4"}, 0.9)],
    ids=str,
)  # fmt: skip
def test_quantised_weights_and_keys_stay_near_the_reference(
    settings: dict[str, str], bound: float, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = logprobs(folder, **settings)
    monkeypatch.setenv(native.VARIABLE, "torch")
    wanted = logprobs(folder)
    off = sum(abs(a - b) for a, b in zip(got, wanted, strict=True)) / len(wanted)
    assert off < bound and (off > 0 or not settings), off


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe"])
def test_the_plan_says_what_is_taken(name: str, tmp_path: Path) -> None:
    small = {"vocab_size": 512, "num_hidden_layers": 2}
    model = made(name, tmp_path, **(small if name == "qwen3_moe" else SIZES))
    loaded, events = built(model, dtype="int4", kv_dtype="int8", max_step_tokens=64, max_running=16)
    for number in range(16):
        prompt = tuple(range(3 + number, 43 + number))
        loaded.engine.submit(Request(str(number), prompt, 8, sampling=SamplingParams(temperature=0)))
    loaded.engine.run_until_idle()
    assert not any(event.error for event in events)
    plan, executor = loaded.plan, loaded.executor
    assert executor.compute.workspace_bytes <= plan.workspace < 40e6  # type: ignore[union-attr]
    assert executor.cache.bytes == plan.kv  # type: ignore[union-attr]
    assert executor.decoder.bytes == plan.weights  # type: ignore[union-attr]
    reasons = {value.name: (value.value, value.reason) for value in plan.values}
    assert reasons["kernels"] == (native.chosen(), native.why()) and reasons["kv_dtype"] == ("int8", "set")
    assert "int4 in groups of 32" in str(plan) and "int8" in plan.formats
    plain = make_plan(read_config(model), EngineSettings(), MACHINE, 20e9, kernels=Kernels(native.chosen()))
    quantised = make_plan(
        read_config(model), EngineSettings(dtype="int4"), MACHINE, 20e9, kernels=Kernels(native.chosen())
    )
    assert quantised.speed[0].tokens_per_s > 1.5 * plain.speed[0].tokens_per_s


@pytest.mark.parametrize(
    ("name", "settings"),
    [("dtype", {"dtype": "int8"}), ("dtype", {"dtype": "int4"}), ("kv_dtype", {"kv_dtype": "int8"}),
     ("packed_cache", {"packed_cache": True}), ("int8_activations", {"int8_activations": True})],
)  # fmt: skip
def test_without_native_kernels_they_are_refused_by_name(
    name: str, settings: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(native.VARIABLE, "torch")
    with pytest.raises(ArmillaryError, match=f"{name} must be .* given .*ARMILLARY_KERNELS asks for it") as caught:
        built(folder, **settings)
    assert caught.value.code is Code.INVALID_DEPLOYMENT and caught.value.param == name


def test_models_that_the_kernels_do_not_take_are_refused_by_name(tmp_path: Path) -> None:
    wide = made("qwen3", tmp_path, num_hidden_layers=1, head_dim=1024, vocab_size=512)
    with pytest.raises(ArmillaryError, match="head_dim must be from 1 to 512, given 1024; ARMILLARY_KERNELS=torch"):
        built(wide)


def test_settings_that_contradict_each_other_are_refused() -> None:
    assert EngineSettings(dtype="bf16", kv_dtype="fp32").dtype == "bfloat16"
    for wrong in (
        {"quantization_group": 32},
        {"quantization_group": 48, "dtype": "int4"},
        {"int8_activations": True, "dtype": "bfloat16"},
        {"dtype": "int3"},
        {"kv_dtype": "int4"},
    ):
        with pytest.raises(ValueError, match="must|should"):
            EngineSettings(**wrong)


@pytest.mark.parametrize(
    "kind", [Kind(), Kind(symmetric=False, layout="gptq_v2"), Kind("awq", symmetric=False, group=64)]
)
def test_integers_of_other_tools_answer_as_what_they_stand_for(kind: Kind, folder: Path, tmp_path: Path) -> None:
    quantized_folder(folder, tmp_path / "quantized", tmp_path / "values", kind)
    loaded, _ = built(tmp_path / "quantized")
    assert loaded.plan.dtype == "int4" and kind.method in next(
        v.reason for v in loaded.plan.values if v.name == "dtype"
    )
    assert loaded.plan.weights < 0.45 * built(tmp_path / "values")[0].plan.weights
    assert answer(tmp_path / "quantized", 24) == answer(tmp_path / "values", 24)
    assert answer(tmp_path / "quantized", 24, dtype="float32") == answer(tmp_path / "values", 24)
    near = zip(logprobs(tmp_path / "quantized"), logprobs(tmp_path / "values"), strict=True)
    assert max(abs(a - b) for a, b in near) < 1e-3
    for name, value in (("dtype", "int8"), ("quantization_group", 32)):
        with pytest.raises(ArmillaryError, match=f"{name} must be"):
            built(tmp_path / "quantized", **({"dtype": "int4"} | {name: value}))


@pytest.mark.parametrize("other", ["values", "symmetric"])
def test_experts_that_were_quantised_in_several_ways_are_kept_in_one(other: str, tmp_path: Path) -> None:
    """As tools leave them that never saw enough tokens for one, or were told to quantise some otherwise."""
    plain = made("qwen3_moe", tmp_path / "plain", moe_intermediate_size=64, **SIZES)
    quantized_folder(plain, tmp_path / "mixed", tmp_path / "values", Kind(symmetric=False, layout="gptq_v2"))
    quantized_folder(plain, tmp_path / "symmetric", tmp_path / "of symmetric", Kind(layout="gptq_v2"))

    def mixed(folder: Path, source: Path) -> None:
        expert = ".experts.1."
        tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if expert not in k}
        taken = {k: v for k, v in load_file(source / "model.safetensors").items() if expert in k}
        save_file({**tensors, **taken}, folder / "model.safetensors")

    mixed(tmp_path / "mixed", tmp_path / other)
    mixed(tmp_path / "values", tmp_path / ("values" if other == "values" else "of symmetric"))
    loaded, _ = built(tmp_path / "mixed")
    assert ("dequantised to 16 bits" in str(loaded.plan)) == (other == "values")
    near = zip(logprobs(tmp_path / "mixed"), logprobs(tmp_path / "values"), strict=True)
    assert max(abs(a - b) for a, b in near) < 0.01


def test_a_second_start_maps_what_the_first_one_packed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("qwen3", tmp_path / "model", **SIZES)
    monkeypatch.setattr(native_load, "worth_keeping", lambda layout: True)
    monkeypatch.setattr(packed_cache, "SPARE_BYTES", 0)
    told: list[int] = []
    without = answer(model, dtype="int4", packed_cache=False)
    assert not (model / ".armillary").exists()
    first = answer(model, dtype="int4")
    assert len(list((model / ".armillary").iterdir())) == 1
    monkeypatch.setattr(native_load.PackedWeights, "pack", lambda *arguments: pytest.fail("packed again"))
    settings = EngineSettings(dtype="int4", kv_blocks=40, max_context=160, threads=1)
    loaded = build_engine(model, settings, lambda events: None, on_bytes=told.append)
    assert told == [loaded.plan.weights]
    assert answer(model, dtype="int4") == first == without


START = """
import json, sys
from pathlib import Path
import armillary.cli.serve, armillary.server.life, armillary.server.serve
from armillary.core.request import Request
from armillary.deployment.engine import EngineSettings
from armillary.runtime.grammar import compile_grammar
from armillary.runtime.load import build_engine
from armillary.runtime.pooling import PoolingParams
from armillary.runtime.sampling import SamplingParams
events = []
settings = EngineSettings(dtype=sys.argv[2], kv_blocks=40, max_context=160, threads=1)
loaded = build_engine(Path(sys.argv[1]), settings, events.extend)
ready = sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[3:]))
asked = [
    SamplingParams(temperature=0),
    SamplingParams(seed=1, top_p=0.9, logprobs=2, prompt_logprobs=1),
    SamplingParams(seed=2, repetition_penalty=1.3, frequency_penalty=0.5, logit_bias={9: 2.0}),
    SamplingParams(temperature=0, grammar=compile_grammar("regex", "[a-z]{2,20}", loaded.tokenizer)),
    PoolingParams("last"),
]
for index, sampling in enumerate(asked):
    count = 0 if isinstance(sampling, PoolingParams) else 4
    loaded.engine.submit(Request(str(index), tuple(range(5, 60)), count, sampling=sampling))
loaded.engine.run_until_idle()
assert not any(event.error for event in events), [event.error for event in events]
later = sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[3:]))
print(json.dumps([ready, later]))
"""
HEAVY = ("torch", "transformers", "scipy", "pandas", "matplotlib", "statsmodels", "llguidance", "httpx")


def half(folder: Path) -> Path:
    """The same checkpoint in bfloat16."""
    save_decoder(load_decoder(folder, torch.bfloat16), folder)
    return folder


@pytest.mark.parametrize("kind", ["tied, int8", "untied, bfloat16", "longrope", "gptq", "awq"])
def test_neither_starts_nor_requests_load_torch(kind: str, tmp_path: Path) -> None:
    if kind == "longrope":
        model = made("phi3_longrope", tmp_path / "model", vocab_size=512)
    elif kind == "untied, bfloat16":
        model = half(made("qwen3", tmp_path / "model", tie_word_embeddings=False, **SIZES))
    else:
        model = made("qwen3", tmp_path / "model", **SIZES)
    if kind in ("gptq", "awq"):
        plain, model = model, tmp_path / "quantized"
        quantized_folder(plain, model, tmp_path / "values", Kind(kind, symmetric=kind == "gptq"))
    command = [sys.executable, "-c", START, model, "int8" if "int8" in kind else "auto", *HEAVY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ready, later = json.loads(done.stdout)
    assert ready == [] and later == ["llguidance"]


def test_what_reading_the_vocabulary_left_is_given_back_before_weights_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(load, "trim", lambda: order.append("trim"))
    load_native = load.load_native

    def noted(*arguments: Any) -> Any:
        order.append("weights")
        return load_native(*arguments)

    monkeypatch.setattr(load, "load_native", noted)
    built(folder)
    assert order == ["trim", "weights"]


@pytest.mark.parametrize("more", [{}, {"int8_activations": True}], ids=str)
def test_weights_that_are_kept_serve_another_engine(more: dict[str, Any], folder: Path) -> None:
    loaded, _ = built(folder, dtype="int4", **more)
    kept, plan = loaded.keep(), loaded.plan
    loaded.release()
    events: list[Event] = []
    settings = EngineSettings(dtype="int4", kv_blocks=40, max_context=160, threads=1, **more)
    again = build_engine(folder, settings, events.extend, kept=kept)
    assert dataclasses.replace(again.plan, available=0, headroom=0, bandwidth=None, speed=()) == dataclasses.replace(
        plan, available=0, headroom=0, bandwidth=None, speed=()
    )
