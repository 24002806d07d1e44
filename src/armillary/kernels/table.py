"""The one table of tensor operations.

The decoder calls `ops.<name>` and nothing else, so a faster implementation of an operation is a new
function here under the same name, chosen once per process by what the machine can do. Every entry has
the signature and meaning of its namesake in `armillary.kernels.reference`.

`ARMILLARY_KERNELS=reference` in the environment chooses the reference for everything. Its other values choose among
the native kernels (`armillary.kernels.native`), which run whole steps of a served model and do not pass through this
table: here they all mean torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from armillary.kernels import activation, invariant, reference
from armillary.kernels.native import VARIABLE


@dataclass(frozen=True, slots=True)
class Operations:
    """Implementations, by name. All are differentiable wherever gradients are enabled."""

    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float, bool], Tensor]
    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    rotary: Callable[[Tensor, Tensor, Tensor], Tensor]
    gated: Callable[[Tensor, str], Tensor]
    activate: Callable[[Tensor, str], Tensor]
    embedding: Callable[[Tensor, Tensor], Tensor]
    route: Callable[[Tensor, int, bool], tuple[Tensor, Tensor]]
    mixture: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, str], Tensor]


REFERENCE = Operations(
    linear=reference.linear,
    rms_norm=reference.rms_norm,
    layer_norm=reference.layer_norm,
    rotary=reference.rotary,
    gated=reference.gated,
    activate=reference.activate,
    embedding=reference.embedding,
    route=reference.route,
    mixture=reference.mixture,
)
TORCH = replace(
    REFERENCE,
    linear=invariant.linear,
    gated=activation.gated,
    activate=activation.activate,
    mixture=invariant.mixture,
)


def select(name: str | None = None) -> Operations:
    """The table for this value of the environment variable; by default that of torch."""
    return REFERENCE if name == "reference" else TORCH


ops = select(os.environ.get(VARIABLE))
