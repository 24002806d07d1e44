"""A decoder described as data.

Every family that is read (docs/models.md) becomes one `ModelSpec`; the one `Decoder` computes any of them.
Nothing here depends on torch, so that planners and simulators can read a model's shape for free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

QkNorm = Literal["none", "head", "full"]
Norms = Literal["pre", "post", "sandwich"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """One rotary embedding.

    Attributes:
        kind: default, linear, dynamic, llama3, yarn or longrope.
        theta: base wavelength.
        dim: how many leading dimensions of a head are rotated; even.
        trained_context: positions seen in pretraining before any scaling (the config's
            `original_max_position_embeddings`, else `max_position_embeddings`).
        parameters: the scaling's own numbers, under their names in config.json.
    """

    kind: str
    theta: float
    dim: int
    trained_context: int
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """One attention layer.

    Attributes:
        heads, kv_heads: query heads and key/value heads; heads is a multiple of kv_heads.
        head_dim: width of one head.
        scale: factor on q·k before softmax (and before the softcap).
        window: a token sees itself and the `window - 1` tokens before it; None sees all before it.
        softcap: scores become softcap * tanh(score / softcap), before masking; None leaves them.
        qk_norm: RMS norm on q and k before rotation: per head, over the full width, or none.
        qkv_bias, out_bias: whether these projections have a bias.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    qk_norm: QkNorm = "none"
    qkv_bias: bool = False
    out_bias: bool = False


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """One gated feed-forward layer: down(act(gate(x)) * up(x)), or a mixture of `experts` of them.

    Attributes:
        intermediate: width of gate and up (of one expert).
        experts: 0 for a dense layer.
        experts_per_token: experts each token is sent to.
        renormalize: whether the chosen experts' probabilities are scaled to sum to one.
    """

    intermediate: int
    activation: Activation = "silu"
    bias: bool = False
    experts: int = 0
    experts_per_token: int = 0
    renormalize: bool = True


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer; `rope` indexes `ModelSpec.ropes`."""

    attention: AttentionSpec
    mlp: MlpSpec
    rope: int = 0


@dataclass(frozen=True, slots=True)
class QuantizedSpec:
    """How some other tool quantised the matrices of a checkpoint; which ones, and in what groups, its tensors say.

    Attributes:
        method: gptq, or awq in its GEMM layout.
        bits: of most matrices.
        zero_offset: what is added to each place of a word of zero points (1 in the first version of gptq's format).
    """

    method: Literal["gptq", "awq"]
    bits: int
    zero_offset: int = 0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The whole decoder.

    Attributes:
        family: config.json's model_type.
        norms: where RMS norms stand: before each half layer, after it, or both.
        norm_offset: whether norms multiply by (1 + weight) instead of weight.
        embedding_scale: factor on the token embeddings.
        logit_softcap: logits become softcap * tanh(logits / softcap); None leaves them.
        tied: whether the output matrix is the embedding.
        max_context: positions that the model is meant for, and that rotary scaling is resolved for.
        eos_token_ids: any of these ends a sequence.
        dtype: element type of the checkpoint: float32, bfloat16 or float16.
        sampling_defaults: the sampling fields of generation_config.json, as found.
        config: config.json as found; what `save_decoder` writes back.
        quantized: how the checkpoint was quantised, where it was.
    """

    family: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    ropes: tuple[RopeSpec, ...]
    norm_eps: float
    max_context: int
    norms: Norms = "pre"
    norm_offset: bool = False
    embedding_scale: float = 1.0
    logit_softcap: float | None = None
    tied: bool = False
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    dtype: str = "float32"
    sampling_defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), compare=False)
    config: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), compare=False, repr=False)
    quantized: QuantizedSpec | None = None

    @property
    def num_layers(self) -> int:
        """How many decoder layers there are."""
        return len(self.layers)

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """Bytes of keys and values that one token position takes over all layers."""
        return sum(2 * layer.attention.kv_heads * layer.attention.head_dim * dtype_bytes for layer in self.layers)

    def num_parameters(self) -> int:
        """Weights in the whole decoder; a tied output matrix counts once."""
        total = self.vocab_size * self.hidden_size * (1 if self.tied else 2) + self.hidden_size
        return total + sum(self._layer_parameters(layer) for layer in self.layers)

    def with_context(self, max_context: int) -> ModelSpec:
        """The same model, resolved for sequences of at most `max_context` tokens.

        Two rotary scalings depend on the length served (`dynamic` and `longrope`). Their frequencies are
        fixed once, for the context that is served, and not per sequence: a key in the cache must not
        change when its sequence grows, nor depend on neighbours.
        """
        return replace(self, max_context=max_context)

    def _layer_parameters(self, layer: LayerSpec) -> int:
        attention, mlp, hidden = layer.attention, layer.mlp, self.hidden_size
        q, kv = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
        total = hidden * (2 * q + 2 * kv) + hidden * (4 if self.norms == "sandwich" else 2)
        total += (q + 2 * kv) * attention.qkv_bias + hidden * attention.out_bias
        total += {"none": 0, "head": 2 * attention.head_dim, "full": q + kv}[attention.qk_norm]
        one = 3 * hidden * mlp.intermediate + (2 * mlp.intermediate + hidden) * mlp.bias
        return total + (one * mlp.experts + hidden * mlp.experts if mlp.experts else one)
