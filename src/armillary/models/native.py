"""A decoder for the native kernels: its weights packed once, its operations described once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from armillary.kernels import native
from armillary.models.packed_weights import PackedWeights, packed
from armillary.models.quantized import FLOAT_BYTES, Quantization, rounded
from armillary.models.rope import frequencies
from armillary.models.spec import LayerSpec, ModelSpec

if TYPE_CHECKING:
    from armillary.models.decoder import Decoder

_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}


class NativeDecoder:
    """What `armillary.kernels._native.Program` runs.

    Args:
        weights: packed, and kept here for as long as the program may run.
        dtype: what was asked for; the factor on embeddings is rounded to it, as the models were trained.

    Attributes:
        model: the description, with the memory that it points to.
        path: the kernels that it is packed for.
        bytes: memory of the weights.
    """

    def __init__(self, spec: ModelSpec, weights: PackedWeights, dtype: str = "float32") -> None:
        extension = native.extension()
        self.spec = spec
        self.weights = weights
        self.path = weights.layout.path
        self.bytes = weights.layout.size
        self.model = extension.Model(
            self.path,
            spec.hidden_size,
            spec.vocab_size,
            spec.norm_eps,
            spec.norm_offset,
            weights.plain("norm"),
            weights.matrix("embed" if spec.tied else "head"),
            # A tied embedding is read from the output matrix, and held once.
            weights.plain("embed"),
            rounded(spec.embedding_scale, dtype if dtype in FLOAT_BYTES else spec.dtype),
            spec.logit_softcap or 0.0,
        )
        for rope in spec.ropes:
            self.model.add_rope(*frequencies(rope, spec.max_context))
        for index, layer in enumerate(spec.layers):
            self.model.add_layer(self._layer(f"layers.{index}", layer))

    def _layer(self, name: str, layer: LayerSpec) -> dict[str, Any]:
        attention, mlp, weights = layer.attention, layer.mlp, self.weights
        parts: dict[str, Any] = {
            "heads": attention.heads,
            "kv_heads": attention.kv_heads,
            "head_dim": attention.head_dim,
            "scale": attention.scale,
            "window": attention.window or 0,
            "softcap": attention.softcap or 0.0,
            "rope": layer.rope,
            "full_qk_norm": attention.qk_norm == "full",
            "activation": _ACTIVATIONS[mlp.activation],
            "intermediate": mlp.intermediate,
        }
        vectors = (
            "attention_norm", "q_norm", "k_norm", "attention_out_norm", "mlp_norm", "mlp_out_norm",
            "qkv_bias", "out_bias", "gate_up_bias", "down_bias",
        )  # fmt: skip
        for vector in vectors:
            parts[vector] = weights.plain(f"{name}.{vector}")
        for matrix in ("qkv", "out"):
            parts[matrix] = weights.matrix(f"{name}.{matrix}")
        if mlp.experts:
            parts["router"] = weights.matrix(f"{name}.router")
            parts["per_token"], parts["renormalize"] = mlp.experts_per_token, mlp.renormalize
            for matrix in ("gate_up", "down"):
                each = range(mlp.experts)
                parts[matrix] = [weights.matrix(f"{name}.expert_{matrix}.{expert}") for expert in each]
        else:
            for matrix in ("gate_up", "down"):
                parts[matrix] = weights.matrix(f"{name}.{matrix}")
        return parts


def native_decoder(
    decoder: Decoder, path: str, asked: Quantization | None = None, threads: int | None = None
) -> NativeDecoder:
    """A decoder in memory, packed; it is of no use afterwards.

    Args:
        path: the kernels to pack for.
        asked: the format of the matrices; as they are where None.
        threads: that pack.
    """
    import torch

    from armillary.models.decoder_weights import DecoderWeights

    dtype = str(decoder.dtype).removeprefix("torch.")
    asked = asked or Quantization(dtype)
    found = packed(DecoderWeights(decoder), asked, path, threads or torch.get_num_threads())
    return NativeDecoder(decoder.spec, found, asked.dtype)
