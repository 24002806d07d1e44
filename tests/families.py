"""Tiny random checkpoints of every family, made by transformers, for parity tests on every floor.

`FAMILIES[name](folder)` writes one and returns the folder. Windows, softcaps and scalings are small enough
to bite on sequences of a few dozen tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

VOCAB = 160

_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}


def _rope(kind: str, theta: float = 10000.0, **parameters: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **parameters}


_LONG = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [1.5 + 0.5 * i for i in range(8)]}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama_bias": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama_linear": ("Llama", {"rope_parameters": _rope("linear", factor=4.0)}),
    "llama_dynamic": ("Llama", {"rope_parameters": _rope("dynamic", factor=4.0)}),
    "llama_llama3": (
        "Llama",
        {
            "head_dim": 32,
            "rope_parameters": _rope(
                "llama3",
                theta=500.0,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {}),
    "qwen2_window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2, "tie_word_embeddings": True},
    ),
    "qwen2_yarn": (
        "Qwen2",
        {"rope_parameters": _rope("yarn", factor=4.0, original_max_position_embeddings=128)},
    ),
    "qwen3": ("Qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3_window": (
        "Qwen3",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    "qwen3_moe_window": (
        "Qwen3Moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "decoder_sparse_step": 2,
            "use_sliding_window": True,
            "sliding_window": 9,
        },
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 8}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 16,
            "sliding_window": 6,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            "head_dim": 16,
            "num_hidden_layers": 7,
            "sliding_window": 6,
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
            "rope_parameters": {
                "full_attention": _rope("linear", theta=1000000.0, factor=8.0),
                "sliding_attention": _rope("default"),
            },
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 11}),
    "phi3_longrope": (
        "Phi3",
        {
            "original_max_position_embeddings": 16,
            "rope_parameters": _rope("longrope", **_LONG),
        },
    ),
    "phi3_partial": ("Phi3", {"rope_parameters": _rope("default", partial_rotary_factor=0.5)}),
    "olmo2": ("Olmo2", {}),
}
"""Name -> (prefix of the transformers classes, fields besides the small ones). The ten families by their
own names, and variants of some."""

TEN = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral", "gemma2", "gemma3", "phi3", "olmo2")


def oracle(name: str, **changes: Any) -> Any:
    """The transformers model of that name, random in float32, every norm and bias off its identity."""
    import transformers

    prefix, fields = CONFIGS[name]
    config = getattr(transformers, f"{prefix}{'Text' if prefix == 'Gemma3' else ''}Config")(
        **{**_SMALL, **fields, **changes}
    )
    config._attn_implementation = "eager"
    torch.manual_seed(sum(map(ord, name)))
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1 or key.endswith("gate.weight"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def write(name: str, folder: Path, **changes: Any) -> Path:
    """Write the checkpoint of that name into `folder`, in float32."""
    oracle(name, **changes).save_pretrained(folder)
    return folder


FAMILIES: dict[str, Callable[[Path], Path]] = {name: partial(write, name) for name in CONFIGS}
