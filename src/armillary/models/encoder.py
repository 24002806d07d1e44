"""The one encoder. Which model it is, its `EncoderSpec` says.

Texts are packed one after another on one axis, without padding between them. All rows go together through kernels
that give each row the same bits beside any others; attention, which looks at a whole text, takes one text at a time.
So the vectors of a text are the same bits alone and in any company.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armillary.kernels.blocked import blocked
from armillary.kernels.narrow import lacks_arithmetic, tiled
from armillary.kernels.rows import padded_rows
from armillary.kernels.table import ops
from armillary.models.encoder_spec import EncoderSpec

Spans = Sequence[tuple[int, int]]
"""First row and the row after the last of each text."""


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each followed by a norm over itself and what went in."""

    def __init__(self, spec: EncoderSpec, kinds: _Kinds) -> None:
        super().__init__()
        self.spec = spec
        hidden, inner = spec.hidden_size, spec.intermediate
        self.qkv, self.qkv_bias = kinds.weight(3 * hidden, hidden), kinds.weight(3 * hidden)
        self.out, self.out_bias = kinds.weight(hidden, hidden), kinds.weight(hidden)
        self.attention_norm, self.attention_norm_bias = kinds.weight(hidden), kinds.weight(hidden)
        self.up, self.up_bias = kinds.weight(inner, hidden), kinds.weight(inner)
        self.down, self.down_bias = kinds.weight(hidden, inner), kinds.weight(hidden)
        self.mlp_norm, self.mlp_norm_bias = kinds.weight(hidden), kinds.weight(hidden)

    def forward(self, x: Tensor, spans: Spans) -> Tensor:
        """x [T, hidden] through the layer. Rows outside of all spans are padding; nothing depends on them."""
        spec = self.spec
        mixed = self._attend(ops.linear(x, self.qkv, self.qkv_bias), spans)
        x = x + ops.linear(mixed, self.out, self.out_bias)
        x = ops.layer_norm(x, self.attention_norm, self.attention_norm_bias, spec.norm_eps)
        inner = ops.activate(ops.linear(x, self.up, self.up_bias), spec.activation)
        x = x + ops.linear(inner, self.down, self.down_bias)
        return ops.layer_norm(x, self.mlp_norm, self.mlp_norm_bias, spec.norm_eps)

    def _attend(self, qkv: Tensor, spans: Spans) -> Tensor:
        """Every token of a text sees all of that text: qkv [T, 3 * hidden] -> [T, hidden]."""
        heads, width = self.spec.heads, self.spec.head_dim
        mixed = qkv.new_zeros(qkv.shape[0], self.spec.hidden_size)
        for begin, end in spans:
            # A copy of its own, so that where the text lies in memory makes no difference either.
            parts = qkv[begin:end].view(end - begin, 3, 1, heads, width).permute(1, 2, 3, 0, 4).contiguous()
            seen = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
            mixed[begin:end] = seen[0].transpose(0, 1).reshape(end - begin, -1)
        return mixed

    def settle(self) -> None:
        """See `Encoder.settle`."""
        for name in ("qkv", "out", "up", "down"):
            weight = getattr(self, name)
            found = blocked(weight)
            found = tiled(weight) if found is None else found
            if found is not None:
                setattr(self, name, nn.Parameter(found, requires_grad=False))


class Encoder(nn.Module):
    """A transformer encoder with learned positions, and its scoring head where it has one.

    Weights are uninitialised until a checkpoint fills them.

    Args:
        dtype: element type of the matrices.
    """

    def __init__(self, spec: EncoderSpec, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.spec = spec
        self.compute_dtype = torch.float32 if lacks_arithmetic(dtype) else dtype
        """Element type of activations, norms and biases: float32 where the CPU cannot compute in `dtype`."""
        kinds = _Kinds(dtype, self.compute_dtype)
        hidden = spec.hidden_size
        self.embed = kinds.weight(spec.vocab_size, hidden)
        self.positions = kinds.weight(spec.positions, hidden)
        self.types = kinds.weight(spec.types, hidden) if spec.types else None
        self.embed_norm, self.embed_norm_bias = kinds.weight(hidden), kinds.weight(hidden)
        self.layers = nn.ModuleList(EncoderLayer(spec, kinds) for _ in range(spec.num_layers))
        self.dense = kinds.weight(hidden, hidden) if spec.scores else None
        self.dense_bias = kinds.weight(hidden) if spec.scores else None
        self.score = kinds.weight(1, hidden) if spec.scores else None
        self.score_bias = kinds.weight(1) if spec.scores else None

    def settle(self) -> None:
        """Rearrange the weights for inference, once; they can then no longer be changed."""
        self.requires_grad_(False)
        for layer in self.layers:
            if isinstance(layer, EncoderLayer):
                layer.settle()

    def forward(self, tokens: Tensor, types: Tensor, lengths: Sequence[int]) -> Tensor:
        """Hidden states of the last layer.

        Args:
            tokens: ids of all texts one after another, int64 [T].
            types: 0 for the first text of a pair and for single texts, 1 for the second, int64 [T].
            lengths: tokens of each text; their sum is T.

        Returns:
            [T, hidden], of `compute_dtype`.
        """
        rows, spans, begin = tokens.shape[0], [], 0
        for length in lengths:
            spans.append((begin, begin + length))
            begin += length
        places = torch.cat([self._places(tokens[begin:end]) for begin, end in spans])
        extra = padded_rows(rows, self.compute_dtype) - rows
        if extra:
            tokens, types, places = (F.pad(part, (0, extra)) for part in (tokens, types, places))
        x = ops.embedding(self.embed, tokens).to(self.compute_dtype)
        if self.types is not None:
            x = x + ops.embedding(self.types, types).to(self.compute_dtype)
        x = x + ops.embedding(self.positions, places).to(self.compute_dtype)
        x = ops.layer_norm(x, self.embed_norm, self.embed_norm_bias, self.spec.norm_eps)
        for layer in self.layers:
            x = layer(x, spans)
        return x[:rows]

    def scores(self, first: Tensor) -> Tensor:
        """The head's score of each text: hidden states of first tokens [N, hidden] -> float32 [N], unbounded."""
        assert self.dense is not None and self.score is not None  # noqa: S101  the spec says so
        inner = ops.activate(ops.linear(first, self.dense, self.dense_bias), self.spec.head_activation)
        return ops.linear(inner, self.score, self.score_bias).float()[:, 0]

    def _places(self, tokens: Tensor) -> Tensor:
        """Rows of the table of positions for the tokens of one text."""
        padding = self.spec.padding_id
        if padding is None:
            return torch.arange(tokens.shape[0])
        real = tokens != padding
        return real.cumsum(0) * real + padding


class _Kinds:
    """Makes parameters: matrices of one element type, vectors of another."""

    def __init__(self, matrix: torch.dtype, vector: torch.dtype) -> None:
        self._matrix = matrix
        self._vector = vector

    def weight(self, *shape: int) -> nn.Parameter:
        """An uninitialised parameter."""
        return nn.Parameter(torch.empty(*shape, dtype=self._matrix if len(shape) > 1 else self._vector))
