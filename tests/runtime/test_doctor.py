"""The machine is read, its rates are measured, and a model's ceilings follow from them by arithmetic."""

from __future__ import annotations

import dataclasses

import pytest

from armillary.models.config import spec_from_config
from armillary.models.spec import ModelSpec
from armillary.runtime.doctor import Diagnosis, active_parameters, ceilings
from armillary.runtime.machine import Machine, read_machine
from armillary.runtime.speed import Rate, matrix_peak, read_bandwidth

MACHINE = Machine("Linux", "a CPU", ("avx2",), 2, 4, 4, 8 << 30, 4 << 30)
DENSE = {
    "model_type": "qwen3", "vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128, "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}  # fmt: skip
EXPERTS = {**DENSE, "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def diagnosis(bandwidth: float, **peaks: float) -> Diagnosis:
    return Diagnosis(
        MACHINE, 2, Rate(bandwidth, bandwidth, 3), {name: Rate(peak, peak, 3) for name, peak in peaks.items()}
    )


def spec(**changes: object) -> ModelSpec:
    return spec_from_config({**DENSE, **changes})


def test_the_machine_is_read() -> None:
    machine = read_machine()
    assert 1 <= machine.usable_cores <= machine.logical_cores
    assert 1 <= machine.threads <= machine.usable_cores
    assert 0 < machine.available <= machine.memory
    assert machine.cpu and machine.system


def test_native_bf16_follows_the_features() -> None:
    assert not MACHINE.native_bf16
    assert dataclasses.replace(MACHINE, features=("avx512f", "avx512_bf16")).native_bf16


def test_rates_are_positive_and_ordered() -> None:
    for rate in (read_bandwidth(1 << 20, 2, 0.01), matrix_peak("float32", 0.01), matrix_peak("bfloat16", 0.01)):
        assert rate.best >= rate.median > 0
        assert rate.repeats >= 3


def test_a_dense_model_uses_all_but_its_input_embedding() -> None:
    assert active_parameters(spec()) == spec().num_parameters()
    untied = spec(tie_word_embeddings=False)
    assert active_parameters(untied) == untied.num_parameters() - 1000 * 64


def test_a_mixture_uses_only_the_experts_a_token_is_sent_to() -> None:
    mixture = spec_from_config(EXPERTS)
    assert mixture.num_parameters() - active_parameters(mixture) == 2 * 3 * 64 * 32 * (8 - 2)


def test_decoding_is_bounded_by_bandwidth_and_a_prompt_by_the_peak() -> None:
    model = spec()
    active = active_parameters(model)
    (found,) = ceilings(model, diagnosis(1e9, float32=1e15), batch_size=4, context=0)
    assert found.decode == pytest.approx(1e9 / (4 * active))
    assert found.batch == pytest.approx(4 * found.decode), "the weights are read once for all four"
    assert found.prompt == pytest.approx(1e15 / (2 * active))
    (slow,) = ceilings(model, diagnosis(1e15, float32=1e6), batch_size=4, context=0)
    assert slow.decode == slow.batch == slow.prompt == pytest.approx(1e6 / (2 * active))


def test_context_costs_and_is_cut_to_what_the_model_has() -> None:
    model = spec()
    empty, full, beyond = (ceilings(model, diagnosis(1e9, float32=1e15), 1, n)[0] for n in (0, 1024, 10**6))
    assert empty.decode > full.decode == beyond.decode
    assert beyond.context == 1024


def test_the_faster_format_comes_first() -> None:
    model = spec()
    assert [c.dtype for c in ceilings(model, diagnosis(1e9, float32=1e12, bfloat16=1e12))] == ["bfloat16", "float32"]
    assert [c.dtype for c in ceilings(model, diagnosis(1e9, float32=1e12, bfloat16=1e3))] == ["float32", "bfloat16"]


def test_a_batch_of_a_mixture_reads_no_more_than_all_of_it() -> None:
    mixture = spec_from_config(EXPERTS)
    (found,) = ceilings(mixture, diagnosis(1e9, float32=1e15), batch_size=1000, context=0)
    assert found.batch == pytest.approx(1000 * 1e9 / (4 * mixture.num_parameters()))


def test_what_does_not_fit_is_said() -> None:
    assert ceilings(spec(), diagnosis(1e9, float32=1e12))[0].fits
    large = spec(hidden_size=8192, intermediate_size=32768, num_hidden_layers=40, vocab_size=100_000)
    assert not ceilings(large, diagnosis(1e9, float32=1e12))[0].fits
