"""The torch reference of every operation: short, differentiable, and the oracle of faster ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, in x's element type.

    x [T, in], weight [out, in], bias [out] or None -> [T, out]. The weight may be narrower than x.
    """
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: bool) -> Tensor:
    """RMS norm over the last axis, computed in float32, returned in x's element type.

    `weight` broadcasts against x; with `offset` the factor is (1 + weight).
    """
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    factor = weight.float()
    return (normed * (1.0 + factor if offset else factor)).to(x.dtype)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading 2 * cos.shape[-1] dimensions of every head; pass the rest through.

    x [T, heads, head_dim], cos and sin [T, rotated / 2]. Halves are paired, not neighbours (GPT-NeoX order).
    """
    half = cos.shape[-1]
    cos, sin = cos[:, None, :].to(x.dtype), sin[:, None, :].to(x.dtype)
    first, second = x[..., :half], x[..., half : 2 * half]
    parts = [first * cos - second * sin, second * cos + first * sin]
    if x.shape[-1] > 2 * half:
        parts.append(x[..., 2 * half :])
    return torch.cat(parts, dim=-1)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """act(gate) * up, where gate_up [T, 2 * width] holds gate then up -> [T, width]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return _ACTIVATIONS[activation](gate) * up


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
    return mixture_by(linear, x, weights, experts, gate_up, down, activation)


def mixture_by(
    project: object, x: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor, activation: str
) -> Tensor:
    """`mixture` with another implementation of `linear`."""
    if not callable(project):
        raise TypeError("project must be a linear operation")
    count = experts.shape[1]
    order = torch.argsort(experts.reshape(-1), stable=True)
    sizes = torch.bincount(experts.reshape(-1), minlength=gate_up.shape[0]).tolist()
    picked = x.index_select(0, order // count).split(sizes)
    results = [
        project(gated(project(part, gate_up[index]), activation), down[index])
        for index, part in enumerate(picked)
        if part.shape[0]
    ]
    flat = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    terms = torch.cat(results).index_select(0, flat).view(*experts.shape, -1)
    return (terms * weights.to(x.dtype)[..., None]).sum(dim=1)


_ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
