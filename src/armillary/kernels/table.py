"""The one table of tensor operations.

The decoder calls `ops.<name>` and nothing else, so a faster implementation of an operation is a new
function here under the same name, chosen once per process by what the machine can do. Every entry has
the signature and meaning of its namesake in `armillary.kernels.reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from armillary.kernels import reference


@dataclass(frozen=True, slots=True)
class Operations:
    """Implementations, by name. All are differentiable wherever gradients are enabled."""

    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float, bool], Tensor]
    rotary: Callable[[Tensor, Tensor, Tensor], Tensor]
    gated: Callable[[Tensor, str], Tensor]
    embedding: Callable[[Tensor, Tensor], Tensor]
    route: Callable[[Tensor, int, bool], tuple[Tensor, Tensor]]
    mixture: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, str], Tensor]


REFERENCE = Operations(
    linear=reference.linear,
    rms_norm=reference.rms_norm,
    rotary=reference.rotary,
    gated=reference.gated,
    embedding=reference.embedding,
    route=reference.route,
    mixture=reference.mixture,
)


def select() -> Operations:
    """The fastest implementations that this machine can run."""
    return REFERENCE


ops = select()
