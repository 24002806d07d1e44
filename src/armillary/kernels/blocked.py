"""Weights reordered once into the layout that oneDNN multiplies from.

A product with few rows spends most of its time reordering the weight; done once at load, one row runs two to
three times as fast and sixteen a third faster. oneDNN also adds every row's products in one order, whatever
the number of rows, so that no padding is needed. Both depend on the build of torch at hand, so the second is
measured here before it is relied on.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

_SHAPES = ((192, 576), (1024, 192), (2048, 64), (1024, 8))
_ROWS = (*range(1, 18), 31, 33, 64, 96)


def blocked(weight: Tensor) -> Tensor | None:
    """A reordered copy of weight [out, in], for `linear` only; None where this machine gains nothing or cannot.

    The copy has the shape and element type of the weight, and `is_mkldnn` is True of it.
    """
    plain = weight.is_cpu and not weight.is_mkldnn and weight.dtype == torch.float32 and weight.ndim == 2
    if not plain or not _holds(torch.get_num_threads()):
        return None
    with torch.no_grad():
        return _reorder(weight.detach().contiguous())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias for a weight from `blocked`. x float32 [T, in] -> [T, out]. Has no gradients."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
    return result


def _reorder(weight: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return result


@cache
def _holds(threads: int) -> bool:
    """Whether rows are independent of their number, bit for bit. `threads` is part of what is measured."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(threads)
    try:
        with torch.no_grad():
            for width, out in _SHAPES:
                x = torch.randn(max(_ROWS), width, generator=generator)
                weight = _reorder(torch.randn(out, width, generator=generator))
                whole = linear(x, weight)
                if not all(torch.equal(linear(x[-rows:], weight), whole[-rows:]) for rows in _ROWS):
                    return False
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return True
