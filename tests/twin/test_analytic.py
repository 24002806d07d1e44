"""Costs from data sheets: rooflines against sums done by hand, collectives against their closed forms, refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.errors import ArmillaryError, Code
from armillary.twin.analytic import AnalyticCost, Parallel
from armillary.twin.collectives import Wire
from armillary.twin.hardware import find_hardware, known_hardware, parse_hardware
from armillary.twin.shapes import read_shape
from armillary.twin.work import StepWork

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}  # fmt: skip
MIXTRAL: dict[str, Any] = {
    **LLAMA_8B, "model_type": "mixtral", "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip
DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
    "n_shared_experts": 1, "n_routed_experts": 256, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "qk_nope_head_dim": 128, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
    "max_position_embeddings": 163840,
}  # fmt: skip


def decode(sequences: int, context: int) -> StepWork:
    return StepWork(sequences, sequences, sequences, sequences * context, sequences * context)


def prompt(tokens: int) -> StepWork:
    return StepWork(1, tokens, 1, tokens, tokens * (tokens + 1) // 2)


def test_one_sequence_decodes_as_fast_as_its_bytes_are_read() -> None:
    shape, hardware = read_shape(LLAMA_8B), find_hardware("h100")
    assumed = hardware.assumptions
    read = 2 * (shape.active_parameters + 1000 * shape.kv_elements)
    expected = read / (3350e9 * assumed.bandwidth[1]) + 32 * assumed.layer_us[1] * 1e-6
    assert AnalyticCost(shape, hardware).step_s(decode(1, 1000)) == pytest.approx(expected, rel=2e-3)


def test_a_long_prompt_takes_what_its_operations_take() -> None:
    shape, hardware = read_shape(LLAMA_8B), find_hardware("h100")
    work = prompt(4096)
    flops = work.tokens * shape.flops_per_token + work.pairs * shape.flops_per_pair
    bound = flops / (989e12 * hardware.assumptions.matrix[1])
    cost = AnalyticCost(shape, hardware)
    assert bound < cost.step_s(work) < 1.05 * bound
    fast, slow = cost.interval(work)
    assert fast < cost.step_s(work) < slow


@pytest.mark.parametrize("name", sorted(known_hardware()))
def test_every_device_has_sources_and_an_ordered_interval(name: str) -> None:
    hardware = find_hardware(name)
    assert hardware.sources["figures"] and hardware.power_w
    tiny = read_shape({**LLAMA_8B, "num_hidden_layers": 4, "vocab_size": 1000})
    cost = AnalyticCost(tiny, hardware)
    for work in (decode(1, 10), decode(64, 2000), prompt(512)):
        fast, slow = cost.interval(work)
        assert 0 < fast <= cost.step_s(work) <= slow
    assert cost.provenance == "assumed" and not cost.inside(decode(1, 10))


steps = st.builds(
    lambda sequences, extra, start: StepWork(
        sequences,
        sequences + extra,
        sequences,
        sequences * (start + 1) + extra,
        sequences * (start + 1) + extra * (start + 1) + extra * (extra + 1) // 2,
    ),
    st.integers(1, 256),
    st.integers(0, 4096),
    st.integers(0, 8000),
)


@given(steps, st.sampled_from([LLAMA_8B, MIXTRAL, DEEPSEEK]))
def test_more_work_never_takes_less_time(work: StepWork, config: dict[str, Any]) -> None:
    cost = AnalyticCost(read_shape(config), find_hardware("b200"), Parallel(tensor=8), "float8")
    more = StepWork(work.sequences + 1, work.tokens + 1, work.rows + 1, work.context + 100, work.pairs + 100)
    assert cost.step_s(more) >= cost.step_s(work) > 0


def test_a_batch_meets_more_experts_and_at_most_all() -> None:
    shape = read_shape(MIXTRAL)
    assert shape.streamed_parameters(1) < 0.3 * shape.streamed_parameters(64)
    # Two of eight experts for each of four tokens: 8 (1 - 0.75^4) = 5.47 of 8 are expected.
    experts = sum(m.parameters for m in shape.matrices if m.experts)
    dense = shape.streamed_parameters(10**6) - experts
    assert (shape.streamed_parameters(4) - dense) / experts == pytest.approx(1 - 0.75**4)


def test_devices_that_share_layers_are_quicker_and_pay_for_talking() -> None:
    shape, hardware = read_shape(LLAMA_8B), find_hardware("h100")
    one, eight = AnalyticCost(shape, hardware), AnalyticCost(shape, hardware, Parallel(tensor=8))
    assert one.step_s(prompt(8192)) / 8 < eight.step_s(prompt(8192)) < one.step_s(prompt(8192)) / 3
    # A single token has little to share: the latency of 64 all-reduces remains.
    assert eight.step_s(decode(1, 10)) > 32 * 2 * 3 * 8e-6


def test_stages_of_layers_need_a_batch_to_be_of_use() -> None:
    shape, hardware = read_shape(LLAMA_8B), find_hardware("a100-80")
    one, four = AnalyticCost(shape, hardware), AnalyticCost(shape, hardware, Parallel(pipeline=4))
    assert four.step_s(decode(1, 100)) >= one.step_s(decode(1, 100))
    many = StepWork(16, 16 * 512, 16, 16 * 512, 16 * 512 * 513 // 2)
    assert four.step_s(many) < 0.6 * one.step_s(many)


def test_experts_are_spread_and_attention_runs_side_by_side() -> None:
    shape, hardware = read_shape(DEEPSEEK), find_hardware("b200")
    spread = AnalyticCost(shape, hardware, Parallel(tensor=1, expert=8), "float8")
    shared = AnalyticCost(shape, hardware, Parallel(tensor=8), "float8")
    # A latent cannot be divided among devices that share a layer, so all of them hold all of it.
    assert spread.kv_tokens > 4 * shared.kv_tokens
    assert spread.step_s(decode(256, 4000)) < shared.step_s(decode(256, 4000))


def test_a_latent_is_used_the_cheaper_way() -> None:
    shape = read_shape(DEEPSEEK)
    (group,) = shape.attention
    long, short = prompt(4096), decode(64, 4096)
    assert group.flops_per_pair * long.pairs + long.context * group.expansion_flops < (
        group.absorbed_flops_per_pair * long.pairs
    )
    assert group.absorbed_flops_per_pair * short.pairs < short.context * group.expansion_flops


def test_a_window_bounds_what_is_read() -> None:
    windowed = read_shape({**LLAMA_8B, "model_type": "mistral", "sliding_window": 1024})
    cost = AnalyticCost(windowed, find_hardware("l4"))
    assert cost.step_s(decode(8, 8000)) < cost.step_s(decode(8, 1000)) * 1.05


@pytest.mark.parametrize(
    ("changes", "match", "code"),
    [
        ({"parallel": Parallel(tensor=16)}, "devices must be at most 8", Code.INVALID_REQUEST),
        ({"hardware": find_hardware("m4-max"), "parallel": Parallel(tensor=2)}, "at most 1", Code.INVALID_REQUEST),
        ({"dtype": "int3"}, "dtype must be one of", Code.INVALID_REQUEST),
        (
            {"parallel": Parallel(tensor=3)},
            "tensor_parallel of llama must divide the 32 heads of attention, given 3",
            Code.INVALID_REQUEST,
        ),
        (
            {"shape": read_shape({**LLAMA_8B, "num_hidden_layers": 2}), "parallel": Parallel(pipeline=4)},
            "pipeline_parallel of llama must be at most the 2 layers, given 4",
            Code.INVALID_REQUEST,
        ),
        (
            {"parallel": Parallel(expert=8)},
            "expert_parallel of llama must be 1, since it has no experts, given 8",
            Code.INVALID_REQUEST,
        ),
        ({"hardware": find_hardware("l4"), "dtype": "float32"}, "2 devices or a narrower", Code.MEMORY),
    ],
)
def test_what_cannot_be_is_refused_with_numbers(changes: dict[str, Any], match: str, code: Code) -> None:
    with pytest.raises(ArmillaryError, match=match) as caught:
        AnalyticCost(**{"shape": read_shape(LLAMA_8B), "hardware": find_hardware("h100"), **changes})
    assert caught.value.code is code


def test_unknown_hardware_is_refused_with_what_is_known() -> None:
    with pytest.raises(ArmillaryError, match="a100-40.*mi300x"):
        find_hardware("h1000")
    with pytest.raises(ArmillaryError, match="expert must be 1 or a multiple"):
        Parallel(tensor=2, expert=3)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("hardware: [", "must be YAML"),
        ("assumptions: {}\nhardware: {x: {kind: gpu}}", "assumptions"),
        ("assumptions: {}\nhardware: {}\nmore: 1", "more"),
    ],
)
def test_a_broken_hardware_file_is_refused_by_field(text: str, match: str) -> None:
    with pytest.raises(ArmillaryError, match=match):
        parse_hardware(text)


def test_collectives_follow_their_closed_forms() -> None:
    wire = Wire(1e-5, 1e11)
    assert wire.all_reduce(1e9, 8) == pytest.approx(2 * 7 * 1e-5 + 2 * 7 / 8 * 1e9 / 1e11)  # ring, bandwidth-optimal
    assert wire.all_reduce(8.0, 8) == pytest.approx(3 * (1e-5 + 8 / 1e11))  # doubling, latency-optimal
    assert wire.all_gather(1e9, 4) == pytest.approx(2 * 1e-5 + 0.75 * 1e9 / 1e11)
    assert wire.reduce_scatter(1e6, 4) + wire.all_gather(1e6, 4) >= 2 * 0.75 * 1e6 / 1e11
    assert wire.all_to_all(1e9, 2) == pytest.approx(1e-5 + 0.5 * 1e9 / 1e11)
    assert wire.all_reduce(1e9, 1) == wire.all_gather(0, 8) == wire.all_to_all(0, 4) == 0
    assert wire.send(1e11) == pytest.approx(1.00001)
