"""A decoder for the native kernels: its weights packed once, its operations described once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from armillary.kernels import native
from armillary.models.decoder import Decoder, DecoderLayer
from armillary.models.rope import frequencies
from armillary.models.spec import ModelSpec

_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}
_PIECE_ROWS = 4096
"""Rows packed at a time; a multiple of what the kernels pack separately."""


class NativeDecoder:
    """What `armillary.kernels._native.Program` runs.

    Args:
        decoder: weights as loaded. They are taken out of it one by one as they are packed, so that no more than one
            matrix is in memory twice; the decoder is of no use afterwards.
        path: the kernels to pack for.

    Attributes:
        model: the description, with the memory that it points to.
        bytes: memory of the weights.
    """

    compute_dtype = torch.float32

    def __init__(self, decoder: Decoder, path: str) -> None:
        self.spec: ModelSpec = decoder.spec
        self.dtype = decoder.dtype
        self.path = path
        self.bytes = 0
        extension = native.module()
        if extension is None:
            raise RuntimeError("the native kernels were not built")
        self._extension = extension
        spec = decoder.spec
        tied = decoder.head is None
        # The head is packed first: a tied embedding is then read from it, and held once.
        head = self._packed(decoder.embed if decoder.head is None else decoder.head)
        embed = None if tied else self._kept(decoder.embed.detach())
        scale = float(torch.tensor(spec.embedding_scale, dtype=decoder.dtype))
        _drop(decoder, "embed")
        _drop(decoder, "head")
        self.model = extension.Model(
            path,
            spec.hidden_size,
            spec.vocab_size,
            spec.norm_eps,
            spec.norm_offset,
            self._vector(decoder.norm),
            head,
            embed,
            scale,
            spec.logit_softcap or 0.0,
        )
        for rope in spec.ropes:
            inverse, factor = frequencies(rope, spec.max_context)
            self.model.add_rope(inverse.float().contiguous(), factor)
        for layer, about in zip(decoder.layers, spec.layers, strict=True):
            if not isinstance(layer, DecoderLayer):
                raise TypeError(f"a layer must be a DecoderLayer, given {type(layer).__name__}")
            self.model.add_layer(self._layer(layer, about.rope))

    def _layer(self, layer: DecoderLayer, rope: int) -> dict[str, Any]:
        attention, mlp = layer.attention, layer.mlp
        parts: dict[str, Any] = {
            "heads": attention.heads,
            "kv_heads": attention.kv_heads,
            "head_dim": attention.head_dim,
            "scale": attention.scale,
            "window": attention.window or 0,
            "softcap": attention.softcap or 0.0,
            "rope": rope,
            "full_qk_norm": attention.qk_norm == "full",
            "activation": _ACTIVATIONS[mlp.activation],
            "intermediate": mlp.intermediate,
        }
        for name in ("attention_norm", "q_norm", "k_norm", "attention_out_norm", "mlp_norm", "mlp_out_norm"):
            parts[name] = self._vector(getattr(layer, name))
        for name in ("qkv_bias", "out_bias", "gate_up_bias", "down_bias"):
            parts[name] = self._vector(getattr(layer, name, None))
        for name in ("qkv", "out"):
            parts[name] = self._packed(getattr(layer, name))
            _drop(layer, name)
        if mlp.experts:
            parts["router"] = self._packed(layer.router)
            parts["per_token"], parts["renormalize"] = mlp.experts_per_token, mlp.renormalize
            parts["gate_up"] = [self._packed(expert, paired=True) for expert in layer.expert_gate_up]
            _drop(layer, "expert_gate_up")
            parts["down"] = [self._packed(expert) for expert in layer.expert_down]
            _drop(layer, "expert_down")
        else:
            parts["gate_up"] = self._packed(layer.gate_up, paired=True)
            _drop(layer, "gate_up")
            parts["down"] = self._packed(layer.down)
            _drop(layer, "down")
        return parts

    def _packed(self, weight: Tensor, paired: bool = False) -> Any:
        """weight [out, in] in the kernels' own layout."""
        weight = weight.detach()
        out, width = weight.shape
        element = native.ELEMENTS[weight.dtype]
        size = self._extension.weight_bytes(self.path, out, width, element, paired=paired)
        memory = native.aligned(size)
        self.bytes += size
        packed = self._extension.Weight(self.path, memory, out, width, element, paired=paired)
        for first in range(0, out, _PIECE_ROWS):
            packed.pack(weight[first : first + _PIECE_ROWS], first)
        return packed

    def _kept(self, weight: Tensor) -> Tensor:
        self.bytes += weight.nbytes
        return weight.contiguous()

    def _vector(self, weight: Tensor | None) -> Tensor | None:
        return None if weight is None else self._kept(weight.detach().float())


def _drop(owner: torch.nn.Module, name: str) -> None:
    """Let go of a parameter's memory."""
    setattr(owner, name, None)
