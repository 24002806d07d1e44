"""Shapes against the models of transformers, built without weights."""

from __future__ import annotations

from typing import Any

import pytest

from armillary.errors import ArmillaryError, Code
from armillary.twin.shapes import read_shape

SMALL: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 20,
    "num_key_value_heads": 4, "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2, "n_group": 2,
    "topk_group": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1,
}  # fmt: skip
JUNK: dict[str, Any] = {"intermediate_size": None, "num_key_value_heads": None}
"""What these families call otherwise or do not have."""
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama, biases and tied": {
        "model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
    },
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "mistral": {"model_type": "mistral", "sliding_window": 64},
    "gemma2": {"model_type": "gemma2", "head_dim": 16},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 16},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3 moe": {
        "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "mlp_only_layers": [1], "head_dim": 16,
    },
    "qwen2 moe": {
        "model_type": "qwen2_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
    },
    "deepseek v3": {"model_type": "deepseek_v3", **LATENT},
    "deepseek v2, without narrow queries": {"model_type": "deepseek_v2", **LATENT, "q_lora_rank": None},
    "opt": {"model_type": "opt", "ffn_dim": 96, "word_embed_proj_dim": 64, **JUNK},
    "gpt2": {
        "model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 256, **JUNK,
    },
    "falcon, new": {
        "model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2, **JUNK,
    },
    "falcon, old": {
        "model_type": "falcon", "new_decoder_architecture": False, "multi_query": True, **JUNK,
    },
}  # fmt: skip


def oracle(config: dict[str, Any]) -> Any:
    """The model of transformers, on the meta device: shapes without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shape_has_as_many_weights_as_the_model_of_transformers(name: str) -> None:
    model = oracle({**SMALL, **CONFIGS[name]})
    config = model.config.to_dict()
    shape = read_shape(config)
    assert shape.known
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.tied == bool(config.get("tie_word_embeddings", shape.tied))


def test_a_token_of_a_mixture_is_multiplied_with_the_experts_it_is_sent_to() -> None:
    shape = read_shape({**SMALL, **CONFIGS["qwen3 moe"]})
    dense = read_shape({**SMALL, "model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": False})
    router = 2 * 8 * 64
    experts = 2 * (2 * 3 * 32 * 64)  # two sparse layers, two of eight experts
    assert shape.active_parameters == dense.active_parameters - 2 * 3 * 96 * 64 + router + experts
    one, many = shape.streamed_parameters(1), shape.streamed_parameters(10_000)
    assert one == pytest.approx(shape.active_parameters - shape.head_parameters)
    assert many == pytest.approx(sum(m.parameters for m in shape.matrices if m.name not in ("head", "embedding")))


def test_operations_are_those_that_torch_counts() -> None:
    """Matrix products of a step, counted by torch's own counter on the model of transformers."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    config = {**SMALL, **CONFIGS["llama"]}
    shape, model = read_shape(config), oracle({**config, "attn_implementation": "eager"})
    tokens = 32
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        model(torch.zeros(1, tokens, dtype=torch.long, device="meta"))
    # The reference computes all pairs and masks half of them.
    expected = tokens * (shape.flops_per_token + shape.flops_per_row) + tokens**2 * shape.flops_per_pair
    rotary = 2 * tokens * 16 / 2  # one small product that makes the angles
    assert counter.get_total_flops() == pytest.approx(expected + rotary, rel=1e-3)


def test_keys_and_values_take_what_published_models_take() -> None:
    """Llama-3-8B takes 128 KiB a token in 16 bits; DeepSeek-V3 70 KB (arXiv 2505.09343, table 1)."""
    llama = read_shape(
        {"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
         "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192}
    )  # fmt: skip
    assert llama.kv_bytes_per_token("bfloat16") == 128 * 1024
    assert llama.parameters == 8_030_261_248
    deepseek = read_shape(
        {"model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
         "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
         "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256, "kv_lora_rank": 512,
         "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128,
         "num_experts_per_tok": 8, "first_k_dense_replace": 3, "max_position_embeddings": 163840}
    )  # fmt: skip
    assert deepseek.kv_bytes_per_token("bfloat16") == pytest.approx(70_272)
    assert deepseek.parameters == pytest.approx(671e9, rel=1e-3)
    assert deepseek.active_parameters == pytest.approx(37e9, rel=0.02)


def test_windows_are_kept_apart() -> None:
    shape = read_shape({**SMALL, **CONFIGS["gemma3"], "sliding_window": 32, "num_hidden_layers": 6})
    assert sorted((g.window or 0, g.layers) for g in shape.attention) == [(0, 1), (32, 5)]


def test_a_model_that_sees_is_read_by_the_part_that_generates() -> None:
    inner = {**SMALL, **CONFIGS["qwen3"]}
    assert read_shape({"model_type": "some_vl", "text_config": inner}) == read_shape(inner)


def test_an_unknown_family_is_read_as_llama_and_says_so() -> None:
    shape = read_shape({**SMALL, "model_type": "novel"})
    llama = read_shape({**SMALL, "model_type": "llama"})
    assert not shape.known and shape.parameters == llama.parameters
    assert llama.caveat is None and "novel is no family that is known here" in str(shape.caveat)


@pytest.mark.parametrize(
    ("said", "dtype"),
    [
        ({"quant_method": "fp8"}, "float8"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "mxfp4"}, "int4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}}}, "float8"),
        ({"quant_method": "novel"}, "bfloat16"),
        ([], "bfloat16"),
    ],
)
def test_a_quantised_checkpoint_is_as_wide_as_it_says(said: object, dtype: str) -> None:
    plain = read_shape({**SMALL, "model_type": "llama", "torch_dtype": "bfloat16"})
    shape = read_shape({**SMALL, "model_type": "llama", "torch_dtype": "bfloat16", "quantization_config": said})
    assert shape.dtype == dtype and shape.known
    assert (shape.parameters, shape.attention) == (plain.parameters, plain.attention)


def test_layers_of_an_unknown_family_keep_their_windows() -> None:
    kinds = ["sliding_attention", "full_attention", "linear_attention", "sliding_attention"]
    novel = {**SMALL, "model_type": "novel", "num_hidden_layers": 4, "sliding_window": 8}
    shape = read_shape({**novel, "layer_types": kinds})
    assert sorted((g.window or 0, g.layers) for g in shape.attention) == [(0, 1), (8, 2)]
    (every,) = read_shape({**novel, "sliding_window": None, "full_attention_interval": 2}).attention
    assert every.layers == 2


def test_a_published_gemma_leaves_out_what_its_family_says() -> None:
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}  # fmt: skip
    shape = read_shape({"model_type": "gemma3", "torch_dtype": "bfloat16", "text_config": text})
    assert shape.known and shape.dtype == "bfloat16" and shape.parameters == pytest.approx(3.88e9, rel=1e-3)


@pytest.mark.parametrize("kind", ["novel", "mixtral"])
def test_what_no_model_is_is_refused(kind: str) -> None:
    sparse = {**SMALL, "model_type": kind, "num_local_experts": 4, "num_experts_per_tok": 5}
    with pytest.raises(ArmillaryError, match="must be at most the 4 experts, given 5"):
        read_shape(sparse)
    with pytest.raises(ArmillaryError, match="must be at most 10000, given 1000000000"):
        read_shape({**SMALL, "model_type": kind, "num_hidden_layers": 10**9})


@pytest.mark.parametrize(
    "broken",
    [
        {"hidden_size": None},
        {"num_hidden_layers": "many"},
        {"vocab_size": 0},
        {"hidden_size": 1},  # less than there are heads
        {"full_attention_interval": 99},
        {"kv_lora_rank": 16, "q_lora_rank": "many"},
        {"kv_lora_rank": 16, "v_head_dim": None},
        {"num_local_experts": 4, "num_experts_per_tok": 2, "mlp_only_layers": 5},
        {"model_type": "llama", "num_key_value_heads": -1},
        {"model_type": "llama", "rope_scaling": {"rope_type": "yarn", "factor": "a"}},
    ],
)
def test_a_shape_without_its_numbers_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ArmillaryError, match="config.json") as refusal:
        read_shape({**SMALL, "model_type": "novel", **broken})
    assert refusal.value.code is Code.UNSUPPORTED_MODEL
