"""What config.json means in every spelling, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from armillary.errors import ArmillaryError, Code
from armillary.models.config import read_config, spec_from_config
from armillary.models.families import FAMILIES, FIXED, HARMLESS
from families import CONFIGS, oracle

SHAPE: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def config(family: str, **fields: Any) -> dict[str, Any]:
    return {"model_type": family, **SHAPE, **fields}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_older_spelling_of_rope_and_dtype_means_the_same(name: str, tmp_path: Path) -> None:
    oracle(name).config.save_pretrained(tmp_path)
    new = json.loads((tmp_path / "config.json").read_text())
    spec = spec_from_config(new)
    old = dict(new)
    old["torch_dtype"] = old.pop("dtype", "float32")
    rope = old.pop("rope_parameters")
    if "full_attention" in rope:
        old["rope_theta"] = rope["full_attention"].pop("rope_theta")
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    else:
        old["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        old["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    kind = rope.pop("rope_type")
    old["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    assert spec_from_config(old) == spec


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_counted_without_reading_them(name: str) -> None:
    model = oracle(name)
    spec = spec_from_config(json.loads(model.config.to_json_string(use_diff=False)))
    assert spec.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
    attention = [layer.attention for layer in spec.layers]
    assert spec.kv_bytes_per_token(2) == sum(4 * a.kv_heads * a.head_dim for a in attention)


@pytest.mark.parametrize("name", CONFIGS)
def test_defaults_are_those_of_transformers(name: str) -> None:
    """A field left out means what the reference's config class means by it."""
    import transformers

    prefix = CONFIGS[name][0]
    reference = getattr(transformers, f"{prefix}{'Text' if prefix == 'Gemma3' else ''}Config")()
    family = FAMILIES[reference.model_type]
    full = json.loads(reference.to_json_string(use_diff=False))
    derived = {"head_dim", "num_key_value_heads", "layer_types", "sliding_window"}
    shapes = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
    for field in set(family.defaults) - derived - shapes - {"rope_theta", "rope_scaling", "rope_parameters"}:
        if field in full and full[field] is not None and family.defaults[field] is not None:
            wanted, ours = full[field], family.defaults[field]
            assert wanted == (list(ours) if isinstance(ours, tuple) else ours), field
    bare = {**{key: full[key] for key in shapes}, "model_type": reference.model_type}
    tokens = dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"))
    assert spec_from_config(bare) == spec_from_config({**full, **tokens})


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("llama", "hidden_act", "mish"),
        ("llama", "rope_interleaved", True),
        ("llama", "sliding_window", 4096),
        ("llama", "layer_types", ["full_attention"] * 4),
        ("llama", "partial_rotary_factor", 0.5),
        ("llama", "attention_multiplier", 0.1),
        ("mistral", "attention_bias", True),
        ("qwen2", "use_mrope", True),
        ("qwen2", "layer_types", ["full_attention"]),
        ("qwen3", "layer_types", ["chunked_attention"] * 4),
        ("gemma2", "use_bidirectional_attention", True),
        ("gemma3_text", "attn_logit_softcapping", 50.0),
        ("phi3", "lm_head_bias", True),
        ("mixtral", "num_shared_experts", 2),
        ("olmo2", "clip_qkv", 8.0),
        ("llama", "is_encoder_decoder", True),
        ("llama", "dtype", "float8_e4m3fn"),
        ("llama", "num_hidden_layers", 0),
        ("llama", "hidden_size", "64"),
        ("llama", "rms_norm_eps", True),
        ("llama", "model_type", "mamba"),
        ("llama", "architectures", ["LlamaForSequenceClassification"]),
        ("llama", "rope_scaling", [1]),
    ],
)
def test_what_would_change_the_maths_is_refused_by_name(family: str, field: str, value: Any) -> None:
    with pytest.raises(ArmillaryError) as caught:
        spec_from_config(config(family, **{field: value}))
    assert caught.value.code is Code.UNSUPPORTED_MODEL
    assert caught.value.param == field
    assert f"`{field}`" in caught.value.message and "given" in caught.value.message


@pytest.mark.parametrize(
    ("family", "scaling", "param"),
    [
        ("llama", {"type": "mrope", "mrope_section": [1]}, "rope_type"),
        ("llama", {"rope_type": "linear"}, "factor"),
        ("llama", {"rope_type": "linear", "factor": 2.0, "beta_fast": 3}, "beta_fast"),
        ("llama", {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0}, "high_freq_factor"),
        ("phi3", {"type": "linear", "factor": 2.0}, "rope_type"),
        ("phi3", {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 7}, "long_factor"),
        ("phi3", {"type": "longrope", "short_factor": [1.0] * 8}, "long_factor"),
    ],
)
def test_unsupported_rotary_scalings_are_refused_by_name(family: str, scaling: dict[str, Any], param: str) -> None:
    with pytest.raises(ArmillaryError) as caught:
        spec_from_config(config(family, rope_scaling=scaling))
    assert (caught.value.code, caught.value.param) == (Code.UNSUPPORTED_MODEL, param)


def test_harmless_and_null_fields_pass() -> None:
    fields = dict.fromkeys(HARMLESS - {"model_type", "architectures", "dtype", "torch_dtype", "hidden_act"}, "x")
    fields |= {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
    for family in FAMILIES.values():
        own = {key: value for key, value in fields.items() if key not in family.defaults}
        spec = spec_from_config(config(family.model_type, **own, quantization_config=None, _name_or_path="x", odd=None))
        assert spec.eos_token_ids == (2,)
    assert not HARMLESS & set(FIXED)


def test_phi3_scalings_of_old_names_are_longrope() -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    for kind in ("su", "yarn"):
        spec = spec_from_config(config("phi3", rope_scaling={"type": kind, **factors}))
        assert spec.ropes[0].kind == "longrope"
        assert spec.ropes[0].parameters["factor"] == 256 / 4096


def test_yarn_extends_the_context_it_was_scaled_for() -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    assert spec_from_config(config("qwen2", rope_scaling=scaling)).max_context == 1024
    assert spec_from_config(config("qwen2")).max_context == 256


def test_generation_config_rules_stop_tokens_and_sampling(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config("qwen3", eos_token_id=7, torch_dtype="bfloat16")))
    assert read_config(tmp_path).eos_token_ids == (7,)
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [8, 9], "temperature": 0.6, "top_k": 20, "do_sample": True, "bos_token_id": 3})
    )
    spec = read_config(tmp_path)
    assert (spec.eos_token_ids, spec.bos_token_id, spec.dtype) == ((8, 9), 3, "bfloat16")
    assert dict(spec.sampling_defaults) == {"temperature": 0.6, "top_k": 20, "do_sample": True}


@pytest.mark.parametrize("text", [None, "{", "[1]"])
def test_a_folder_without_a_readable_config_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ArmillaryError, match="config.json") as caught:
        read_config(tmp_path)
    assert caught.value.code is Code.INVALID_CHECKPOINT
