"""The one decoder. Which model it is, its `ModelSpec` says.

Tokens are flat: one axis over all tokens of all sequences of a step. Attention is the caller's
(`Attend`): paged over the KV cache when serving, packed and causal when training.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from armillary.kernels.table import ops
from armillary.models.rope import frequencies, rotation
from armillary.models.spec import LayerSpec, ModelSpec


class Attend(Protocol):
    """Attention over whatever keys and values the caller keeps."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend in layer number `layer`.

        q [T, heads, head_dim], k and v [T, kv_heads, head_dim], q and k already normed and rotated, all of
        the decoder's `compute_dtype` -> [T, heads, head_dim] of the same element type. The scale, window and
        softcap are in `spec.layers[layer].attention`.
        """
        ...


class DecoderLayer(nn.Module):
    """Attention and feed-forward with their norms. Parameters that a spec does not have are None.

    Query, key and value projections are one matrix, and so are gate and up: one product instead of three or
    two. Checkpoints keep the names of their family (`armillary.models.families`).
    """

    def __init__(self, spec: ModelSpec, layer: LayerSpec, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        attention, mlp, hidden = layer.attention, layer.mlp, spec.hidden_size
        self.spec = layer
        self.eps = spec.norm_eps
        self.offset = spec.norm_offset
        self.q_width = attention.heads * attention.head_dim
        self.kv_width = attention.kv_heads * attention.head_dim
        before, after = spec.norms != "post", spec.norms != "pre"

        def weight(*shape: int, when: bool = True) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device)) if when else None

        self.attention_norm = weight(hidden, when=before)
        self.qkv = weight(self.q_width + 2 * self.kv_width, hidden)
        self.qkv_bias = weight(self.q_width + 2 * self.kv_width, when=attention.qkv_bias)
        full = attention.qk_norm == "full"
        self.q_norm = weight(self.q_width if full else attention.head_dim, when=attention.qk_norm != "none")
        self.k_norm = weight(self.kv_width if full else attention.head_dim, when=attention.qk_norm != "none")
        self.out = weight(hidden, self.q_width)
        self.out_bias = weight(hidden, when=attention.out_bias)
        self.attention_out_norm = weight(hidden, when=after)
        self.mlp_norm = weight(hidden, when=before)
        dense = mlp.experts == 0
        self.gate_up = weight(2 * mlp.intermediate, hidden, when=dense)
        self.gate_up_bias = weight(2 * mlp.intermediate, when=dense and mlp.bias)
        self.down = weight(hidden, mlp.intermediate, when=dense)
        self.down_bias = weight(hidden, when=dense and mlp.bias)
        self.router = weight(mlp.experts, hidden, when=not dense)
        self.expert_gate_up = weight(mlp.experts, 2 * mlp.intermediate, hidden, when=not dense)
        self.expert_down = weight(mlp.experts, hidden, mlp.intermediate, when=not dense)
        self.mlp_out_norm = weight(hidden, when=after)

    def forward(self, x: Tensor, index: int, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x [T, hidden], the residual stream, through layer number `index`."""
        part = self._attention(self._norm(x, self.attention_norm), index, cos, sin, attend)
        x = x + self._norm(part, self.attention_out_norm)
        part = self._mlp(self._norm(x, self.mlp_norm))
        return x + self._norm(part, self.mlp_out_norm)

    def _norm(self, x: Tensor, weight: nn.Parameter | None) -> Tensor:
        return x if weight is None else ops.rms_norm(x, weight, self.eps, self.offset)

    def _attention(self, x: Tensor, index: int, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        spec, rows = self.spec.attention, x.shape[0]
        qkv = ops.linear(x, self.qkv, self.qkv_bias)
        q, k, v = qkv.split([self.q_width, self.kv_width, self.kv_width], dim=-1)
        if spec.qk_norm == "full":
            q, k = self._norm(q, self.q_norm), self._norm(k, self.k_norm)
        q = q.reshape(rows, spec.heads, spec.head_dim)
        k = k.reshape(rows, spec.kv_heads, spec.head_dim)
        if spec.qk_norm == "head":
            q, k = self._norm(q, self.q_norm), self._norm(k, self.k_norm)
        q, k = ops.rotary(q, cos, sin), ops.rotary(k, cos, sin)
        mixed = attend(index, q, k, v.reshape(rows, spec.kv_heads, spec.head_dim))
        return ops.linear(mixed.reshape(rows, self.q_width), self.out, self.out_bias)

    def _mlp(self, x: Tensor) -> Tensor:
        mlp = self.spec.mlp
        if mlp.experts:
            scores = ops.linear(x, self.router, None)
            weights, experts = ops.route(scores, mlp.experts_per_token, mlp.renormalize)
            return ops.mixture(x, weights, experts, self.expert_gate_up, self.expert_down, mlp.activation)
        inner = ops.gated(ops.linear(x, self.gate_up, self.gate_up_bias), mlp.activation)
        return ops.linear(inner, self.down, self.down_bias)


class Decoder(nn.Module):
    """A decoder-only transformer.

    Args:
        spec: what to compute.
        dtype: element type of the weights.
        device: where they live; "meta" allocates nothing.

    Weights are uninitialised until `initialise` or a checkpoint fills them.
    """

    def __init__(self, spec: ModelSpec, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Parameter(torch.empty(spec.vocab_size, spec.hidden_size, dtype=dtype, device=device))
        self.layers = nn.ModuleList(DecoderLayer(spec, layer, dtype, device) for layer in spec.layers)
        self.norm = nn.Parameter(torch.empty(spec.hidden_size, dtype=dtype, device=device))
        head = torch.empty(spec.vocab_size, spec.hidden_size, dtype=dtype, device=device) if not spec.tied else None
        self.head = nn.Parameter(head) if head is not None else None
        self._rotations = [frequencies(rope, spec.max_context) for rope in spec.ropes]

    @property
    def compute_dtype(self) -> torch.dtype:
        """Element type of activations, queries, keys and values."""
        return self.embed.dtype

    def initialise(self, std: float = 0.02, generator: torch.Generator | None = None) -> None:
        """Draw matrices from N(0, std²); set norms to the identity and biases to zero."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("norm"):
                    parameter.fill_(0.0 if self.spec.norm_offset else 1.0)
                elif name.endswith("bias"):
                    parameter.zero_()
                else:
                    parameter.normal_(0.0, std, generator=generator)

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states after the final norm.

        tokens and positions int64 [T]: ids, and each one's position in its own sequence -> [T, hidden].
        """
        x = ops.embedding(self.embed, tokens)
        if self.spec.embedding_scale != 1.0:
            # The factor is rounded to the weights' type, as the models were trained.
            x = x * torch.tensor(self.spec.embedding_scale, dtype=self.embed.dtype, device=x.device)
        rotations = [rotation(positions, inverse.to(x.device), scale) for inverse, scale in self._rotations]
        for index, (module, layer) in enumerate(zip(self.layers, self.spec.layers, strict=True)):
            cos, sin = rotations[layer.rope]
            x = module(x, index, cos, sin, attend)
        return ops.rms_norm(x, self.norm, self.spec.norm_eps, self.spec.norm_offset)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary: hidden [R, hidden] -> float32 [R, vocab]."""
        scores = ops.linear(hidden, self.embed if self.head is None else self.head, None).float()
        cap = self.spec.logit_softcap
        return scores if cap is None else torch.tanh(scores / cap) * cap
