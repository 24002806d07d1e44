"""The torch reference of every operation: short, differentiable, and the oracle of faster ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Gated = Callable[[Tensor, str], Tensor]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, in x's element type.

    x [T, in], weight [out, in], bias [out] or None -> [T, out]. The weight may be narrower than x.
    """
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: bool) -> Tensor:
    """RMS norm over the last axis, computed in float32, returned in x's element type.

    `weight` broadcasts against x; with `offset` the factor is (1 + weight).
    """
    factor = weight.float() + 1.0 if offset else weight.float()
    width = x.shape[-1:]
    if factor.ndim == 1:
        return F.rms_norm(x.float(), width, factor, eps).to(x.dtype)
    return (F.rms_norm(x.float(), width, None, eps) * factor).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last axis, computed in float32, returned in x's element type."""
    return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps).to(x.dtype)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading dimensions of every head, pass the rest through.

    x [T, heads, head_dim]; cos and sin [T, 1, rotated], of x's element type. Dimension i is paired with
    i + rotated / 2 (the order of GPT-NeoX): cos repeats itself in both halves, and sin is negative in the
    first (`rotation` makes both).
    """
    width = cos.shape[-1]
    if x.shape[-1] == width:
        return torch.addcmul(x * cos, x.roll(width // 2, -1), sin)
    return torch.cat([rotary(x[..., :width], cos, sin), x[..., width:]], dim=-1)


def rotation(positions: Tensor, inverse: Tensor, scaling: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine for `positions` (int64 [T]), [T, 1, dim] each, as `rotary` takes them.

    `inverse` and `scaling` are of `armillary.models.rope.frequencies`.
    """
    angles = positions[:, None, None].float() * inverse
    cos, sin = angles.cos(), angles.sin()
    if scaling != 1.0:
        cos, sin = cos * scaling, sin * scaling
    return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """act(gate) * up, where gate_up [T, 2 * width] holds gate then up -> [T, width]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return activate(gate, activation) * up


def activate(x: Tensor, activation: str) -> Tensor:
    """The activation of that name (`armillary.models.spec.Activation`, or tanh), element by element."""
    if activation == "silu":
        return F.silu(x)
    if activation == "relu":
        return F.relu(x)
    if activation == "tanh":
        return torch.tanh(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def embedding(weight: Tensor, tokens: Tensor) -> Tensor:
    """Rows of weight [vocab, width] for tokens int64 [T] -> [T, width]."""
    return F.embedding(tokens, weight)


def route(scores: Tensor, count: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """The `count` most probable experts per token.

    scores [T, experts] -> (weights float32 [T, count], experts int64 [T, count]).
    """
    weights, experts = torch.topk(torch.softmax(scores.float(), dim=-1), count, dim=-1)
    return (weights / weights.sum(dim=-1, keepdim=True) if renormalize else weights), experts


def mixture(x: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """Sum over each token's experts of weight * down(gated(gate_up(x))).

    x [T, hidden], weights and experts [T, count], gate_up [experts, 2 * width, hidden],
    down [experts, hidden, width] -> [T, hidden]. A token's terms are added in order of rank, so that its
    sum does not depend on which tokens are beside it.
    """
    return mixture_by(linear, gated, x, weights, experts, gate_up, down, activation)


def mixture_by(
    project: Linear,
    gating: Gated,
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    gate_up: Tensor,
    down: Tensor,
    activation: str,
) -> Tensor:
    """`mixture` over other implementations of `linear` and `gated`."""
    count = experts.shape[1]
    flat = experts.reshape(-1)
    order = torch.argsort(flat, stable=True)
    sizes = torch.bincount(flat, minlength=gate_up.shape[0]).tolist()
    parts = torch.split_with_sizes(x.index_select(0, order // count), sizes)
    results = [
        project(gating(project(part, gate_up[index], None), activation), down[index], None)
        for index, part in enumerate(parts)
        if part.shape[0]
    ]
    place = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    terms = torch.cat(results).index_select(0, place).view(*experts.shape, -1)
    shares = weights.to(x.dtype)[..., None]
    total = terms[:, 0] * shares[:, 0]
    for rank in range(1, count):
        total = torch.addcmul(total, terms[:, rank], shares[:, rank])
    return total
