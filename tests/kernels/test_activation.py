"""Activations: what torch computes, and the same bits for a row alone and among others, for any number of threads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from armillary.kernels import activation, reference
from armillary.kernels.table import ops

NAMES = ("silu", "gelu", "gelu_tanh", "relu", "tanh")


@pytest.mark.parametrize("name", NAMES)
def test_they_are_what_torch_computes(name: str) -> None:
    x = torch.cat([torch.randn(50, 97) * 4, torch.tensor([[0.0, -200.0, 200.0, 1e-30]]).repeat(1, 25)[:, :97]])
    exact = reference.activate(x.double(), name)
    with torch.inference_mode():
        torch.testing.assert_close(activation.activate(x, name).double(), exact, atol=2e-6, rtol=1e-6)
        both = torch.cat([x, x.roll(1, 0)], dim=-1)
        torch.testing.assert_close(activation.gated(both, name).double(), exact * x.roll(1, 0), atol=1e-4, rtol=1e-6)
        huge = torch.tensor([[-torch.inf, torch.inf, torch.nan]])
        assert activation.activate(huge, "silu")[0, 1] == torch.inf and ops.activate is activation.activate


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("threads", [1, 2, 3, 6])
def test_a_row_is_the_same_bits_among_any_others(name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(threads)
    with torch.inference_mode():
        for width in (97, 1376):
            x = torch.randn(131, 2 * width, generator=generator) * 3
            gated, plain = ops.gated(x, name), ops.activate(x, name)
            for part in (slice(0, 1), slice(40, 41), slice(0, 2), slice(7, 20), slice(0, 64), slice(30, 131)):
                assert torch.equal(ops.gated(x[part].clone(), name), gated[part])
                assert torch.equal(ops.activate(x[part].clone(), name), plain[part])


def test_the_fused_ones_would_not_do() -> None:
    """The reason for this file: one row of torch's GELU against two."""
    with torch.inference_mode():
        x = torch.randn(2, 2 * 576, generator=torch.Generator().manual_seed(0))
        alone = F.gelu(x[:1].clone().chunk(2, -1)[0])
        if torch.equal(F.gelu(x.chunk(2, -1)[0])[:1], alone):
            pytest.skip("on this machine torch's GELU rounds one row as it rounds two")


def test_gradients_flow_through_the_reference() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    ops.gated(x, "silu").sum().backward()
    assert x.grad is not None
