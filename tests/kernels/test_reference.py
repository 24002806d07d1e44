"""The reference operations against their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from armillary.kernels import reference
from armillary.kernels.reference import rotation


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


@pytest.mark.parametrize("offset", [False, True])
def test_rms_norm(offset: bool) -> None:
    x, weight = draw(3, 4, 16), draw(16, seed=1)
    wanted = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * (weight + 1 if offset else weight)
    torch.testing.assert_close(reference.rms_norm(x, weight, 1e-5, offset), wanted)
    rows = weight.expand(4, 16)
    torch.testing.assert_close(reference.rms_norm(x, rows, 1e-5, offset), wanted)


@pytest.mark.parametrize("dim", [16, 8])
def test_rotary_turns_pairs_by_position_times_frequency(dim: int) -> None:
    x, positions = draw(5, 2, 16), torch.tensor([0, 1, 7, 100, 3])
    inverse = 1.0 / 10000 ** (torch.arange(0, dim, 2).float() / dim)
    got = reference.rotary(x, *rotation(positions, inverse, 1.0, torch.float32))
    pairs = torch.complex(x[..., : dim // 2], x[..., dim // 2 : dim])
    turned = pairs * torch.polar(torch.ones(5, 1, dim // 2), (positions[:, None] * inverse)[:, None, :])
    wanted = torch.cat([turned.real, turned.imag, x[..., dim:]], dim=-1)
    torch.testing.assert_close(got, wanted)
    assert torch.equal(got[0], x[0])


def test_gated_activations() -> None:
    x = draw(3, 10)
    gate, up = x[:, :5], x[:, 5:]
    assert torch.equal(reference.gated(x, "silu"), F.silu(gate) * up)
    assert torch.equal(reference.gated(x, "relu"), F.relu(gate) * up)
    assert torch.equal(reference.gated(x, "gelu"), F.gelu(gate) * up)
    assert torch.equal(reference.gated(x, "gelu_tanh"), F.gelu(gate, approximate="tanh") * up)


@pytest.mark.parametrize("renormalize", [False, True])
def test_mixture_is_the_weighted_sum_of_experts(renormalize: bool) -> None:
    x, gate_up, down = draw(7, 8), draw(4, 12, 8, seed=1), draw(4, 8, 6, seed=2)
    weights, experts = reference.route(draw(7, 4, seed=3), 2, renormalize)
    if renormalize:
        torch.testing.assert_close(weights.sum(-1), torch.ones(7))
    wanted = torch.stack(
        [
            sum(
                weight * (down[expert] @ reference.gated((gate_up[expert] @ row)[None], "silu")[0])
                for weight, expert in zip(weights[i], experts[i].tolist(), strict=True)
            )
            for i, row in enumerate(x)
        ]
    )
    torch.testing.assert_close(reference.mixture(x, weights, experts, gate_up, down, "silu"), wanted)


def test_every_operation_has_gradients() -> None:
    x, weight = draw(4, 8).double().requires_grad_(), draw(6, 8, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: reference.linear(a, b), (x, weight))
    cos, sin = rotation(torch.arange(4), torch.tensor([1.0, 0.1]), 1.0, torch.float64)
    heads = draw(4, 2, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a: reference.rotary(a, cos, sin), (heads,))
    assert torch.autograd.gradcheck(lambda a: reference.gated(a, "silu"), (x,))
