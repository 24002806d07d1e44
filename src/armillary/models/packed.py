"""Causal attention over documents packed one after another: the `Attend` of training.

No document sees another. Documents of similar length are padded to a batch and go through torch's fused
attention together; at most a fifth of a batch is padding, whatever the lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from armillary.errors import ArmillaryError, Code
from armillary.models.spec import AttentionSpec, ModelSpec

_FILLED = 0.8


def packed_positions(lengths: Sequence[int]) -> Tensor:
    """Positions of packed documents, int64 [sum(lengths)]: 0, 1, .. within each."""
    return torch.cat([torch.arange(length) for length in lengths])


class PackedAttention:
    """Attends within each of `lengths` consecutive documents. Differentiable; holds no state between calls.

    Args:
        spec: the decoder's.
        lengths: tokens of each document, each at least one; their sum is T.
    """

    def __init__(self, spec: ModelSpec, lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        if not lengths or min(lengths) < 1:
            raise ArmillaryError(Code.INVALID_REQUEST, f"lengths must be positive, given {list(lengths)}", "lengths")
        self._spec = spec
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        self._tokens = starts[-1]
        self._batches: list[tuple[int, int, Tensor]] = []
        self._masks: dict[tuple[int, int], Tensor] = {}
        self._single = len(lengths) == 1
        place = torch.empty(self._tokens, dtype=torch.int64)
        base = 0
        for group in _group(lengths):
            width = lengths[group[0]]
            rows = torch.tensor([starts[document] for document in group])
            sizes = torch.tensor([lengths[document] for document in group])
            column = torch.arange(width)
            inside = column[None, :] < sizes[:, None]
            # Padding repeats a document's own first token: finite, after every real token, so never seen.
            gather = torch.where(inside, rows[:, None] + column[None, :], rows[:, None])
            slots = base + torch.arange(len(group) * width).view(len(group), width)
            place[gather[inside]] = slots[inside]
            base += len(group) * width
            self._batches.append((len(group), width, gather.reshape(-1).to(device)))
        self._place = place.to(device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `armillary.models.decoder.Attend`; T must be the sum of the lengths."""
        if q.shape[0] != self._tokens:
            given = f"must be {self._tokens} tokens, the sum of the lengths, given {q.shape[0]}"
            raise ArmillaryError(Code.INVALID_REQUEST, given, "lengths")
        attention = self._spec.layers[layer].attention
        if self._single:
            return self._attend(attention, q[None], k[None], v[None])[0]
        outputs = []
        for rows, width, gather in self._batches:
            padded = [x.index_select(0, gather).view(rows, width, *x.shape[1:]) for x in (q, k, v)]
            outputs.append(self._attend(attention, *padded).reshape(rows * width, *q.shape[1:]))
        return torch.cat(outputs).index_select(0, self._place)

    def _attend(self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[rows, width, heads, head_dim] in and out."""
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        width = q.shape[2]
        window = spec.window if spec.window is not None and spec.window < width else None
        shared = spec.heads != spec.kv_heads
        if spec.softcap is None:
            mask = None if window is None else self._mask(width, window, q.device)
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=spec.scale, enable_gqa=shared
            )
            return out.transpose(1, 2)
        if shared:
            k = k.repeat_interleave(spec.heads // spec.kv_heads, dim=1)
            v = v.repeat_interleave(spec.heads // spec.kv_heads, dim=1)
        scores = (q @ k.transpose(-1, -2)).float() * spec.scale
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
        scores = scores.masked_fill(~self._mask(width, window or width, q.device), float("-inf"))
        return (torch.softmax(scores, dim=-1).to(v.dtype) @ v).transpose(1, 2)

    def _mask(self, width: int, window: int, device: torch.device) -> Tensor:
        """True where row may see column, bool [width, width]."""
        key = (width, window)
        if key not in self._masks:
            ones = torch.ones(width, width, dtype=torch.bool, device=device)
            self._masks[key] = ones.tril() & ones.triu(1 - window)
        return self._masks[key]


def _group(lengths: Sequence[int]) -> list[list[int]]:
    """Documents in batches, longest first, such that a batch is mostly filled."""
    order = sorted(range(len(lengths)), key=lambda document: -lengths[document])
    groups: list[list[int]] = []
    filled = 0
    for document in order:
        if groups:
            area = lengths[groups[-1][0]] * (len(groups[-1]) + 1)
            if filled + lengths[document] >= _FILLED * area:
                groups[-1].append(document)
                filled += lengths[document]
                continue
        groups.append([document])
        filled = lengths[document]
    return groups
