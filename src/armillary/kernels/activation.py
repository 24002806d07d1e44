"""Activations whose elements do not depend on the shape around them, bit for bit.

Torch's fused SiLU and GELU compute most of a tensor with vector instructions and the ends of every thread's share with
scalar ones, which round otherwise; where the ends lie depends on the number of rows and of threads. Its GELU takes
another library for contiguous tensors besides, so one row differs from two. Here they are made of operations that round
every element alike: exp, tanh and erf, which are computed in vectors throughout, and exact arithmetic. That costs
some microseconds a call, so the fused SiLU is kept where no share can end within a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from armillary.kernels import reference

_VECTORS = 64
"""Twice what the widest vector loop takes at once, a multiple of every other: two threads may share a row."""


def activate(x: Tensor, activation: str) -> Tensor:
    """`reference.activate`, every element the same bits whatever is around it. Without gradients."""
    if torch.is_grad_enabled() or not x.is_cpu:
        return reference.activate(x, activation)
    if activation == "silu":
        # Two threads split an even number of vectors in whole vectors; more may not.
        if torch.get_num_threads() <= 2 and x.shape[-1] % _VECTORS == 0:
            return reference.activate(x, activation)
        return torch.div(x, torch.neg(x).exp_().add_(1))
    if activation == "gelu":
        return torch.mul(x, 0.5**0.5).erf_().add_(1).mul_(0.5).mul_(x)
    if activation == "gelu_tanh":
        inner = torch.mul(x, x).mul_(x).mul_(0.044715).add_(x).mul_((2 / torch.pi) ** 0.5)
        return inner.tanh_().add_(1).mul_(0.5).mul_(x)
    return reference.activate(x, activation)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """`reference.gated` over `activate`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return activate(gate, activation) * up
