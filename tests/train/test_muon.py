"""Muon's direction is orthogonal, its momentum Nesterov's, and its result the same on any number of threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from armillary.train.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_a_direction_keeps_its_singular_vectors(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.T @ orthogonal(matrix) @ right.T
    values = turned.diagonal()
    assert (turned - values.diag()).abs().max() < 1e-3
    assert 0.6 < values.min() and values.max() < 1.3
    assert not orthogonal(torch.zeros(shape)).any()


def test_it_does_as_torch_does_where_torch_keeps_float32() -> None:
    parameters = [torch.nn.Parameter(torch.randn(12, 30, generator=torch.Generator().manual_seed(i))) for i in (1, 1)]
    with ThreadPoolExecutor(2) as threads:
        ours = Muon([parameters[0]], threads, momentum=0.9, weight_decay=0.1)
        theirs = torch.optim.Muon(
            [parameters[1]], lr=0.01, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
        )
        ours.param_groups[0]["lr"] = 0.01
        for step in range(5):
            for parameter in parameters:
                parameter.grad = torch.randn(12, 30, generator=torch.Generator().manual_seed(step))
            ours.step()
            theirs.step()
    # torch orthogonalises in bfloat16: three significant digits of an update of about 0.002
    assert (parameters[0] - parameters[1]).abs().max() < 1e-3
    assert (parameters[0] - parameters[1]).abs().mean() < 1e-4


def test_threads_do_not_matter() -> None:
    results = []
    for count in (1, 3):
        parameters = [
            torch.nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(i))) for i in range(5)
        ]
        with ThreadPoolExecutor(count) as threads:
            muon = Muon(parameters, threads)
            muon.param_groups[0]["lr"] = 0.1
            for parameter in parameters:
                parameter.grad = parameter.detach().clone() + 1
            muon.step()
        results.append([parameter.detach() for parameter in parameters])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
