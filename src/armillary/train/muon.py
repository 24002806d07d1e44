"""Muon: momentum whose direction is made orthogonal, for the matrices between embeddings and logits.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with the update scaled to the size
of AdamW's as in J. Liu et al., "Muon is scalable for LLM training" (2025, section 2.2). torch's own Muon computes in
bfloat16, which CPUs without bf16 units emulate: there its step takes ten times as long as the gradient itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from functools import partial
from typing import Any

import torch
from torch import Tensor

_ROUNDS = ((3.4445, -4.7750, 2.0315),) * 5
"""Coefficients of the quintic iteration, by which Muon's authors bring all singular values near 1 in five rounds."""

_SIZE = 0.2
"""Root mean square of an entry of AdamW's updates, which an orthogonal direction is scaled to."""


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix, about, whose singular values are all 1 (within 0.7 to 1.2). Float32, rank of `matrix`.

    Newton-Schulz iteration: products only, on the smaller side.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / x.norm().clamp(min=1e-7)
    for a, b, c in _ROUNDS:
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """Updates matrices, each on one of the threads; the result does not depend on how many there are.

    Args:
        matrices: float32 parameters of two dimensions.
        threads: where matrices are updated.
        momentum: decay of the running gradient (Nesterov's form).
        weight_decay: share of a weight that is taken off, times the learning rate.
    """

    def __init__(
        self, matrices: Iterable[Tensor], threads: Executor, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(matrices, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay})
        self._threads = threads

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            list(self._threads.map(partial(self._update, group), group["params"]))

    @torch.no_grad()
    def _update(self, group: dict[str, Any], parameter: Tensor) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if gradient is None:
            return
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        running = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        direction = orthogonal(gradient.lerp(running, group["momentum"]))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"] * _SIZE * max(parameter.shape) ** 0.5)
