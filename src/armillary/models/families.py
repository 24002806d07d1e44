"""Every family that is read, as data: what its config.json means, and what it calls its weights.

A family has no code of its own. Defaults are those of its `transformers` config class, which is what a
field that config.json leaves out means. docs/models.md shows these tables to users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from armillary.models.spec import Norms, QkNorm

Windows = Literal["none", "all", "flag", "flagged_layers", "layers"]
"""Which layers slide: none; all if `sliding_window` is set; all if `use_sliding_window` is; those of
`layer_types` (or from `max_window_layers` on) if `use_sliding_window` is; those of `layer_types` (or all but
every `sliding_window_pattern`-th)."""

ALL_ROPES = frozenset({"default", "linear", "dynamic", "llama3", "yarn", "longrope"})


@dataclass(frozen=True, slots=True)
class Family:
    """How one model_type is read.

    Attributes:
        defaults: every field that is read, with its value where config.json leaves it out.
        fixed: fields that would change the maths, with the values that do not. Any other value is refused.
        qkv_bias, out_bias, mlp_bias: True, False, or the name of the field that says so.
        experts_field: the field that counts experts; empty for dense families.
        expert_width_field: the field with the width of one expert.
        aliases: other spellings of a field -> the name used here.
        layer: our per-layer parameter -> its tensors in the checkpoint, stacked in this order. `{e}` runs
            over experts.
    """

    model_type: str
    title: str
    defaults: Mapping[str, Any]
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    activation_field: str = "hidden_act"
    norms: Norms = "pre"
    norm_offset: bool = False
    qk_norm: QkNorm = "none"
    qkv_bias: bool | str = False
    out_bias: bool | str = False
    mlp_bias: bool | str = False
    windows: Windows = "none"
    ropes: frozenset[str] = ALL_ROPES
    partial_rotary: bool = False
    scaled_embedding: bool = False
    experts_field: str = ""
    expert_width_field: str = "intermediate_size"
    aliases: Mapping[str, str] = field(default_factory=dict)
    layer: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_COMMON: dict[str, Any] = {
    "vocab_size": None,
    "hidden_size": None,
    "intermediate_size": None,
    "num_hidden_layers": None,
    "num_attention_heads": None,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "partial_rotary_factor": None,
    "original_max_position_embeddings": None,
    "hidden_act": "silu",
}

_ATTENTION: dict[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "qkv_bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "out": ("self_attn.o_proj.weight",),
    "out_bias": ("self_attn.o_proj.bias",),
    "q_norm": ("self_attn.q_norm.weight",),
    "k_norm": ("self_attn.k_norm.weight",),
}
_DENSE: dict[str, tuple[str, ...]] = {
    "gate_up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "gate_up_bias": ("mlp.gate_proj.bias", "mlp.up_proj.bias"),
    "down": ("mlp.down_proj.weight",),
    "down_bias": ("mlp.down_proj.bias",),
}
_PRE: dict[str, tuple[str, ...]] = {
    "attention_norm": ("input_layernorm.weight",),
    "mlp_norm": ("post_attention_layernorm.weight",),
}
_POST: dict[str, tuple[str, ...]] = {
    "attention_out_norm": ("post_attention_layernorm.weight",),
    "mlp_out_norm": ("post_feedforward_layernorm.weight",),
}
_SANDWICH: dict[str, tuple[str, ...]] = {
    "attention_norm": ("input_layernorm.weight",),
    "attention_out_norm": ("post_attention_layernorm.weight",),
    "mlp_norm": ("pre_feedforward_layernorm.weight",),
    "mlp_out_norm": ("post_feedforward_layernorm.weight",),
}
_LLAMA_LAYER = {**_ATTENTION, **_DENSE, **_PRE}
_GEMMA: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
}

_ALL = (
    Family(
        model_type="llama",
        title="Llama 1, 2 and 3",
        defaults={**_COMMON, "max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False},
        fixed={"rope_interleaved": (False,)},
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        mlp_bias="mlp_bias",
        layer=_LLAMA_LAYER,
    ),
    Family(
        model_type="mistral",
        title="Mistral",
        defaults={
            **_COMMON,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        fixed={"attention_bias": (False,)},
        windows="all",
        layer=_LLAMA_LAYER,
    ),
    Family(
        model_type="qwen2",
        title="Qwen2 and Qwen2.5",
        defaults={
            **_COMMON,
            "num_key_value_heads": 32,
            "max_position_embeddings": 32768,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
            "layer_types": None,
        },
        fixed={"use_mrope": (False,)},
        qkv_bias=True,
        windows="flagged_layers",
        layer=_LLAMA_LAYER,
    ),
    Family(
        model_type="qwen3",
        title="Qwen3",
        defaults={
            **_COMMON,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "max_position_embeddings": 32768,
            "attention_bias": False,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
            "layer_types": None,
        },
        qk_norm="head",
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        windows="flagged_layers",
        layer=_LLAMA_LAYER,
    ),
    Family(
        model_type="qwen3_moe",
        title="Qwen3 MoE",
        defaults={
            **_COMMON,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "attention_bias": False,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": False,
            "decoder_sparse_step": 1,
            "mlp_only_layers": (),
        },
        qk_norm="head",
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        windows="flag",
        experts_field="num_experts",
        expert_width_field="moe_intermediate_size",
        aliases={"num_local_experts": "num_experts"},
        layer={
            **_LLAMA_LAYER,
            "router": ("mlp.gate.weight",),
            "expert_gate_up": ("mlp.experts.{e}.gate_proj.weight", "mlp.experts.{e}.up_proj.weight"),
            "expert_down": ("mlp.experts.{e}.down_proj.weight",),
        },
    ),
    Family(
        model_type="mixtral",
        title="Mixtral",
        defaults={
            **_COMMON,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        windows="all",
        experts_field="num_local_experts",
        aliases={"num_experts": "num_local_experts"},
        layer={
            **_ATTENTION,
            **_PRE,
            "router": ("block_sparse_moe.gate.weight",),
            "expert_gate_up": ("block_sparse_moe.experts.{e}.w1.weight", "block_sparse_moe.experts.{e}.w3.weight"),
            "expert_down": ("block_sparse_moe.experts.{e}.w2.weight",),
        },
    ),
    Family(
        model_type="gemma2",
        title="Gemma 2",
        defaults={
            **_COMMON,
            **_GEMMA,
            "max_position_embeddings": 8192,
            "final_logit_softcapping": 30.0,
            "attn_logit_softcapping": 50.0,
            "sliding_window_pattern": 2,
        },
        fixed={"use_bidirectional_attention": (False,)},
        activation_field="hidden_activation",
        norms="sandwich",
        norm_offset=True,
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        windows="layers",
        scaled_embedding=True,
        layer={**_ATTENTION, **_DENSE, **_SANDWICH},
    ),
    Family(
        model_type="gemma3_text",
        title="Gemma 3 (text)",
        defaults={
            **_COMMON,
            **_GEMMA,
            # Published checkpoints leave these out.
            "vocab_size": 262208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131072,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "final_logit_softcapping": None,
            "sliding_window_pattern": 6,
        },
        # The reference implementation reads this softcap and then does not apply it.
        fixed={"use_bidirectional_attention": (False,), "attn_logit_softcapping": ()},
        activation_field="hidden_activation",
        norms="sandwich",
        norm_offset=True,
        qk_norm="head",
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        windows="layers",
        scaled_embedding=True,
        layer={**_ATTENTION, **_DENSE, **_SANDWICH},
    ),
    Family(
        model_type="phi3",
        title="Phi-3, Phi-3.5 and Phi-4 (text)",
        defaults={
            **_COMMON,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "sliding_window": None,
        },
        fixed={"attention_bias": (False,), "mlp_bias": (False,), "lm_head_bias": (False,)},
        windows="all",
        ropes=frozenset({"default", "longrope"}),
        partial_rotary=True,
        layer={
            **_ATTENTION,
            **_PRE,
            "qkv": ("self_attn.qkv_proj.weight",),
            "gate_up": ("mlp.gate_up_proj.weight",),
            "down": ("mlp.down_proj.weight",),
        },
    ),
    Family(
        model_type="olmo2",
        title="OLMo 2",
        defaults={**_COMMON, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "attention_bias": False},
        norms="post",
        qk_norm="full",
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        layer={**_ATTENTION, **_DENSE, **_POST},
    ),
)

FAMILIES: dict[str, Family] = {family.model_type: family for family in _ALL}

HARMLESS = frozenset(
    """
    architectures auto_map model_type transformers_version torch_dtype dtype use_cache initializer_range
    attention_dropout resid_pdrop embd_pdrop hidden_dropout bos_token_id eos_token_id pad_token_id sep_token_id
    cls_token_id unk_token_id decoder_start_token_id output_attentions output_hidden_states return_dict
    return_dict_in_generate output_scores use_return_dict torchscript use_bfloat16 pretraining_tp problem_type
    task_specific_params tokenizer_class prefix id2label label2id finetuning_task gradient_checkpointing
    cache_implementation attn_implementation num_logits_to_keep output_router_logits router_aux_loss_coef
    router_jitter_noise max_window_layers sliding_window_size full_attn_mod interpolate_factor is_llama_config
    unsloth_fixed unsloth_version hidden_activation hidden_act chunk_size_feed_forward max_length min_length
    do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens forced_bos_token_id forced_eos_token_id tie_encoder_decoder pruned_heads
    tf_legacy_loss cross_attention_hidden_size boi_token_index eoi_token_index image_token_index
    """.split()
)
"""Fields of config.json that cannot change a logit here: training, generation, bookkeeping."""

FIXED: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "is_decoder": (False, True),
    "add_cross_attention": (False,),
    "compression_config": (),
}
"""Fields that any family may carry, with the values that change nothing. Null always passes."""
