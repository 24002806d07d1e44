"""The one decoder. Which model it is, its `ModelSpec` says.

Tokens are flat: one axis over all tokens of all sequences of a step. Attention is the caller's
(`Attend`): paged over the KV cache when serving, packed and causal when training.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armillary.kernels.blocked import blocked
from armillary.kernels.narrow import lacks_arithmetic, tiled
from armillary.kernels.reference import rotation
from armillary.kernels.rows import padded_rows
from armillary.kernels.table import ops
from armillary.models.rope import frequencies
from armillary.models.spec import LayerSpec, ModelSpec

SMALL_TIED_BYTES = 32 << 20
"""A tied embedding up to this size is copied when the decoder settles, for a faster output product."""


class Attend(Protocol):
    """Attention over whatever keys and values the caller keeps."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend in layer number `layer`.

        q [T, heads, head_dim], k and v [T, kv_heads, head_dim], q and k already normed and rotated, all of
        the decoder's `compute_dtype`, possibly strided -> [T, heads, head_dim] of the same element type. The
        scale, window and softcap are in `spec.layers[layer].attention`.
        """
        ...


class DecoderLayer(nn.Module):
    """Attention and feed-forward with their norms. Parameters that a spec does not have are None.

    Query, key and value projections are one matrix, and so are gate and up: one product instead of three or
    two. Checkpoints keep the names of their family (`armillary.models.families`).
    """

    def __init__(self, spec: ModelSpec, layer: LayerSpec, kinds: _Kinds) -> None:
        super().__init__()
        attention, mlp, hidden = layer.attention, layer.mlp, spec.hidden_size
        self.attention = attention
        self.mlp = mlp
        self.eps = spec.norm_eps
        self.offset = spec.norm_offset
        self.q_width = attention.heads * attention.head_dim
        self.kv_width = attention.kv_heads * attention.head_dim
        wide = self.q_width + 2 * self.kv_width
        before, after = spec.norms != "post", spec.norms != "pre"
        full, normed = attention.qk_norm == "full", attention.qk_norm != "none"

        self.attention_norm = kinds.weight(hidden) if before else None
        self.qkv = kinds.weight(wide, hidden)
        self.qkv_bias = kinds.weight(wide) if attention.qkv_bias else None
        self.q_norm = kinds.weight(self.q_width if full else attention.head_dim) if normed else None
        self.k_norm = kinds.weight(self.kv_width if full else attention.head_dim) if normed else None
        self.out = kinds.weight(hidden, self.q_width)
        self.out_bias = kinds.weight(hidden) if attention.out_bias else None
        self.attention_out_norm = kinds.weight(hidden) if after else None
        self.mlp_norm = kinds.weight(hidden) if before else None
        if mlp.experts:
            self.router = kinds.weight(mlp.experts, hidden)
            self.expert_gate_up = kinds.weight(mlp.experts, 2 * mlp.intermediate, hidden)
            self.expert_down = kinds.weight(mlp.experts, hidden, mlp.intermediate)
        else:
            self.gate_up = kinds.weight(2 * mlp.intermediate, hidden)
            self.gate_up_bias = kinds.weight(2 * mlp.intermediate) if mlp.bias else None
            self.down = kinds.weight(hidden, mlp.intermediate)
            self.down_bias = kinds.weight(hidden) if mlp.bias else None
        self.mlp_out_norm = kinds.weight(hidden) if after else None
        self._settled_norms: Tensor | None = None

    def forward(self, x: Tensor, index: int, rows: int, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x [T, hidden], the residual stream, through layer number `index`. Its first `rows` rows are tokens."""
        part = self._attend(self._norm(x, self.attention_norm), index, rows, cos, sin, attend)
        x = x + self._norm(part, self.attention_out_norm)
        part = self._feed_forward(self._norm(x, self.mlp_norm))
        return x + self._norm(part, self.mlp_out_norm)

    def _norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return x if weight is None else ops.rms_norm(x, weight, self.eps, self.offset)

    def _attend(self, x: Tensor, index: int, rows: int, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        spec, padded = self.attention, x.shape[0]
        qkv = ops.linear(x, self.qkv, self.qkv_bias)
        both = self.q_width + self.kv_width
        qk = qkv[:, :both]
        if spec.qk_norm == "full":
            q, k = self._norm(qk[:, : self.q_width], self.q_norm), self._norm(qk[:, self.q_width :], self.k_norm)
            qk = torch.cat([q, k], dim=-1)
        qk = qk.view(padded, spec.heads + spec.kv_heads, spec.head_dim)
        if spec.qk_norm == "head":
            qk = self._norm(qk, self._head_norms())
        qk = ops.rotary(qk, cos, sin)[:rows]
        v = qkv[:rows, both:].view(rows, spec.kv_heads, spec.head_dim)
        mixed = attend(index, qk[:, : spec.heads], qk[:, spec.heads :], v).reshape(rows, self.q_width)
        if padded > rows:
            mixed = F.pad(mixed, (0, 0, 0, padded - rows))
        return ops.linear(mixed, self.out, self.out_bias)

    def _head_norms(self) -> Tensor:
        """The norms of all query heads and all key heads, [heads + kv_heads, head_dim]."""
        if self._settled_norms is not None:
            return self._settled_norms
        assert self.q_norm is not None and self.k_norm is not None  # noqa: S101  the spec says so
        spec = self.attention
        return torch.cat([self.q_norm.expand(spec.heads, -1), self.k_norm.expand(spec.kv_heads, -1)])

    def settle(self) -> None:
        """See `Decoder.settle`."""
        if self.attention.qk_norm == "head":
            self._settled_norms = self._head_norms().detach()
        for name in ("qkv", "out", "gate_up", "down"):
            found = _rearranged(getattr(self, name)) if hasattr(self, name) else None
            if found is not None:
                setattr(self, name, nn.Parameter(found, requires_grad=False))

    def _feed_forward(self, x: Tensor) -> Tensor:
        mlp = self.mlp
        if mlp.experts:
            weights, experts = ops.route(ops.linear(x, self.router, None), mlp.experts_per_token, mlp.renormalize)
            return ops.mixture(x, weights, experts, self.expert_gate_up, self.expert_down, mlp.activation)
        inner = ops.gated(ops.linear(x, self.gate_up, self.gate_up_bias), mlp.activation)
        return ops.linear(inner, self.down, self.down_bias)


class Decoder(nn.Module):
    """A decoder-only transformer.

    Args:
        spec: what to compute.
        dtype: element type of the matrices.
        device: where they live; "meta" allocates nothing.

    Weights are uninitialised until `initialise` or a checkpoint fills them.
    """

    def __init__(self, spec: ModelSpec, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.spec = spec
        narrow = torch.device(device).type == "cpu" and lacks_arithmetic(dtype)
        self.compute_dtype = torch.float32 if narrow else dtype
        """Element type of activations, queries, keys and values, norms and biases: float32 where the weights
        are narrower than what this CPU can compute with."""
        kinds = _Kinds(dtype, self.compute_dtype, device)
        self.embed = kinds.weight(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(spec, layer, kinds) for layer in spec.layers)
        self.norm = kinds.weight(spec.hidden_size)
        self.head = None if spec.tied else kinds.weight(spec.vocab_size, spec.hidden_size)
        found = [frequencies(rope, spec.max_context) for rope in spec.ropes]
        self._rotations = [(torch.from_numpy(inverse), scale) for inverse, scale in found]
        self._independent = False

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the matrices."""
        return self.embed.dtype

    def settle(self) -> None:
        """Rearrange the weights for inference, once; they can then no longer be trained, saved or changed.

        Takes no more memory than before, but for one matrix at a time, and for a second copy of a small tied
        embedding.
        """
        self.requires_grad_(False)
        layers = [layer for layer in self.layers if isinstance(layer, DecoderLayer)]
        for layer in layers:
            layer.settle()
        small = self.embed.numel() * self.embed.element_size() <= SMALL_TIED_BYTES
        found = _rearranged(self.embed if self.head is None else self.head) if self.head is not None or small else None
        if found is not None:
            self.head = nn.Parameter(found, requires_grad=False)
        self._independent = all(layer.qkv.is_mkldnn for layer in layers)

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

        Without gradients the tokens are padded to a number of rows at which no row's result depends on the
        others (`armillary.kernels.rows`); `attend` never sees the padding.
        """
        rows = tokens.shape[0]
        pad = not self._independent and not torch.is_grad_enabled()
        if pad and (extra := padded_rows(rows, self.compute_dtype) - rows):
            tokens, positions = F.pad(tokens, (0, extra)), F.pad(positions, (0, extra))
        x = ops.embedding(self.embed, tokens)
        if self.spec.embedding_scale != 1.0:
            # The factor is rounded to the weights' type, as the models were trained.
            x = x * torch.tensor(self.spec.embedding_scale, dtype=x.dtype, device=x.device)
        x = x.to(self.compute_dtype)
        rotations = [rotation(positions, inverse.to(x.device), scale, x.dtype) for inverse, scale in self._rotations]
        for index, (module, layer) in enumerate(zip(self.layers, self.spec.layers, strict=True)):
            x = module(x, index, rows, *rotations[layer.rope], attend)
        return ops.rms_norm(x, self.norm, self.spec.norm_eps, self.spec.norm_offset)[:rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary: hidden [R, hidden] -> float32 [R, vocab]."""
        scores = ops.linear(hidden, self.embed if self.head is None else self.head, None).float()
        cap = self.spec.logit_softcap
        return scores if cap is None else torch.tanh(scores / cap) * cap


def _rearranged(weight: Tensor) -> Tensor | None:
    """The weight in the layout that this machine multiplies from fastest, if it has one."""
    found = blocked(weight)
    return tiled(weight) if found is None else found


class _Kinds:
    """Makes parameters: matrices of one element type, vectors of another."""

    def __init__(self, matrix: torch.dtype, vector: torch.dtype, device: torch.device | str) -> None:
        self._dtypes = {1: vector}
        self._matrix = matrix
        self._device = device

    def weight(self, *shape: int) -> nn.Parameter:
        """An uninitialised parameter."""
        dtype = self._dtypes.get(len(shape), self._matrix)
        return nn.Parameter(torch.empty(*shape, dtype=dtype, device=self._device))
