"""What a training run is told, and the shape of the model it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from armillary.errors import ArmillaryError, Code
from armillary.models.config import spec_from_config
from armillary.models.spec import ModelSpec


@dataclass(frozen=True)
class Shape:
    """The Qwen3 decoder to train. `max_context` is what the folder declares; documents are far shorter."""

    vocab_size: int = 1024
    hidden_size: int = 192
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 512
    max_context: int = 4096
    rope_theta: float = 10000.0

    def config(self, eos: list[int], pad: int) -> dict[str, Any]:
        """config.json as transformers writes it for Qwen3."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.max_context,
            "rope_theta": self.rope_theta,
            "rope_scaling": None,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
            "eos_token_id": eos[0],
            "pad_token_id": pad,
            "torch_dtype": "bfloat16",
            "use_cache": True,
        }

    def spec(self, eos: list[int], pad: int) -> ModelSpec:
        return spec_from_config(self.config(eos, pad), {"eos_token_id": eos})


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights a run ends with; written into its checkpoints.

    Args:
        seed: of the text and of the first weights.
        steps: optimizer steps in the whole run; the learning rate ends at its floor there.
        tokens_per_step: room for packed documents in one step.
        shards: how many threads compute the gradient of one step, each on its own documents; summed in a fixed order,
            so a run is repeatable. One thread on each core is faster than all cores on each product.
        learning_rate: of embeddings and norms (AdamW), at its highest.
        matrix_rate: of all other matrices (Muon), at its highest.
        floor: the last learning rates, as a share of the highest.
        warmup_steps: steps over which the learning rates rise linearly from zero.
        weight_decay: of Muon's matrices; embeddings and norms have none.
        momentum: of Muon.
        beta2: AdamW's second moment decay.
        clip: largest norm of the gradient.
        evaluate_every: steps between evaluations on held-out tasks, after each of which kinds of documents that lag
            are drawn more often.
        evaluate_count: items per kind in one such evaluation.
    """

    seed: int = 0
    steps: int = 11_500
    tokens_per_step: int = 2048
    shards: int = 2
    learning_rate: float = 3e-3
    matrix_rate: float = 5e-3
    floor: float = 0.02
    warmup_steps: int = 200
    weight_decay: float = 0.05
    momentum: float = 0.95
    beta2: float = 0.99
    clip: float = 1.0
    evaluate_every: int = 500
    evaluate_count: int = 64

    def __post_init__(self) -> None:
        for name in ("steps", "tokens_per_step", "shards", "evaluate_every", "evaluate_count"):
            if getattr(self, name) < 1:
                raise ArmillaryError(
                    Code.INVALID_REQUEST, f"{name} must be at least 1, given {getattr(self, name)}", name
                )
