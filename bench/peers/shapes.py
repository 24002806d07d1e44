"""Checkpoints of known shapes with random weights, in the layout of Hugging Face: nothing is downloaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SPECIAL = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder with gated feed-forward layers and grouped-query attention.

    Attributes:
        family: `qwen3` (norms of queries and keys, tied embeddings) or `llama` (neither).
    """

    name: str
    family: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    theta: float
    eps: float
    context: int = 4096

    @property
    def tied(self) -> bool:
        return self.family == "qwen3"

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's matrices."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.inner

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` says."""
        family = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
        return {
            "architectures": [family[self.family]],
            "model_type": self.family,
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.eps,
            "rope_theta": self.theta,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
            "bos_token_id": 0,
            "eos_token_id": 0,
            "use_cache": True,
        }

    @property
    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, as in the family's checkpoints."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for index in range(self.layers):
            layer = f"model.layers.{index}"
            yield f"{layer}.input_layernorm.weight", (self.hidden,)
            yield f"{layer}.self_attn.q_proj.weight", (queries, self.hidden)
            yield f"{layer}.self_attn.k_proj.weight", (keys, self.hidden)
            yield f"{layer}.self_attn.v_proj.weight", (keys, self.hidden)
            yield f"{layer}.self_attn.o_proj.weight", (self.hidden, queries)
            if self.family == "qwen3":
                yield f"{layer}.self_attn.q_norm.weight", (self.head_dim,)
                yield f"{layer}.self_attn.k_norm.weight", (self.head_dim,)
            yield f"{layer}.post_attention_layernorm.weight", (self.hidden,)
            yield f"{layer}.mlp.gate_proj.weight", (self.inner, self.hidden)
            yield f"{layer}.mlp.up_proj.weight", (self.inner, self.hidden)
            yield f"{layer}.mlp.down_proj.weight", (self.hidden, self.inner)
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab, self.hidden)


SHAPES = {
    "qwen3-0.6b": Shape("qwen3-0.6b", "qwen3", 28, 1024, 3072, 16, 8, 128, 151936, 1e6, 1e-6),
    "tinyllama-1.1b": Shape("tinyllama-1.1b", "llama", 22, 2048, 5632, 32, 4, 64, 32000, 1e4, 1e-5),
    "tiny": Shape("tiny", "qwen3", 2, 128, 256, 4, 2, 32, 512, 1e6, 1e-6),
}
"""The last is for trying the bench itself."""


def checkpoint(shape: Shape, folder: Path) -> Path:
    """`folder` with a checkpoint of `shape` in bfloat16; made where it is not there yet."""
    done, wanted = folder / "done.json", json.dumps(shape.config)
    if done.exists() and done.read_text(encoding="utf-8") == wanted:
        return folder
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".model.{os.getpid()}.tmp"
    save_file(dict(_random(shape)), temporary, metadata={"format": "pt"})
    os.replace(temporary, folder / "model.safetensors")
    classes = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL, "eos_token": SPECIAL}
    generation = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    for name, value in (
        ("config.json", shape.config),
        ("tokenizer.json", tokenizer(shape.vocab)),
        ("tokenizer_config.json", {**classes, "pad_token": SPECIAL, "model_max_length": shape.context}),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    done.write_text(wanted, encoding="utf-8")
    return folder


def _random(shape: Shape) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights of the usual initial width. The last norm is random too: with tied embeddings the most likely token
    would else be the last one again, whatever the layers do."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, size in shape.tensors:
        if len(size) == 1 and name != "model.norm.weight":
            yield name, torch.ones(size, dtype=torch.bfloat16)
        else:
            width = 0.02 if len(size) > 1 else 1.0
            yield name, (torch.randn(size, generator=generator) * width).to(torch.bfloat16)


def tokenizer(vocab: int) -> dict[str, Any]:
    """A byte-level tokenizer that has as many tokens as the model, most of which no text is made into."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [SPECIAL, *letters, *(f"w{number}" for number in range(vocab - 1 - len(letters)))]
    made = Tokenizer(models.BPE({name: place for place, name in enumerate(names)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([SPECIAL])
    found: dict[str, Any] = json.loads(made.to_str())
    return found
