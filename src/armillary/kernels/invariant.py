"""Products whose rows do not depend on one another, bit for bit, on torch's own kernels.

Where gradients are wanted these are the reference: training has no neighbours to be independent of.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from armillary.kernels import blocked, reference
from armillary.kernels.activation import gated
from armillary.kernels.narrow import lacks_arithmetic, narrow_linear
from armillary.kernels.rows import pad_rows


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`reference.linear`, each row the same bits whatever the other rows are."""
    if weight.is_mkldnn:
        return blocked.linear(x, weight, bias)
    if torch.is_grad_enabled() or not x.is_cpu:
        return reference.linear(x, weight, bias)
    if weight.dtype == x.dtype and not lacks_arithmetic(weight.dtype):
        return F.linear(pad_rows(x), weight, bias)[: x.shape[0]]
    return narrow_linear(x.float(), weight, bias).to(x.dtype)


def mixture(x: Tensor, weights: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """`reference.mixture` over this module's `linear` and invariant activations."""
    return reference.mixture_by(linear, gated, x, weights, experts, gate_up, down, activation)
