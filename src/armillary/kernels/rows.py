"""How many rows a matrix product is given, so that a row's result never depends on the rows beside it.

BLAS libraries pick another kernel, and with it another order of addition, for one row, for two or three,
and for whatever a thread gets when rows are split over threads. Above a few rows per thread they settle on one
order. Padding to that region makes every row's result the same bits, alone or in any batch. Where the region
begins is measured here once, on the library, machine and thread count at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_RULES = ((4, 8), (8, 8), (16, 16), (32, 32), (64, 64))
"""Candidates, cheapest first: up to the first number of rows, that many; else the next multiple of the second."""
_SHAPES = ((192, 576), (1024, 192), (2048, 64), (1024, 8))
"""Probed products (in, out): square, tall, and the narrow ones where libraries split the inner axis."""
_LARGE = 96


def padded_rows(rows: int, dtype: torch.dtype = torch.float32) -> int:
    """The number of rows, at least `rows`, that a product of `rows` rows should be given."""
    least, multiple = _rule(torch.get_num_threads(), dtype)
    return least if rows <= least else -(-rows // multiple) * multiple


def pad_rows(x: Tensor) -> Tensor:
    """x [rows, width] with zero rows appended as `padded_rows` asks; x itself where it asks for none."""
    extra = padded_rows(x.shape[0], x.dtype) - x.shape[0]
    return F.pad(x, (0, 0, 0, extra)) if extra else x


@cache
def _rule(threads: int, dtype: torch.dtype) -> tuple[int, int]:
    """The cheapest rule that holds for every probed shape. `threads` is part of what is measured."""
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(threads)
        probes = [
            (torch.randn(_LARGE, k, generator=generator).to(dtype), torch.randn(n, k, generator=generator).to(dtype))
            for k, n in _SHAPES
        ]
        for rule in _RULES:
            if all(_holds(rule, x, weight) for x, weight in probes):
                return rule
    return _RULES[-1]


def _holds(rule: tuple[int, int], x: Tensor, weight: Tensor) -> bool:
    least, multiple = rule
    counts = {least, *range(multiple, _LARGE + 1, multiple)}
    turned = weight.t().contiguous()
    products: list[Callable[[Tensor], Tensor]] = [
        lambda part: F.linear(part, weight),
        lambda part: torch.mm(part, turned),
    ]
    for product in products:
        whole = product(x)
        for count in sorted(counts):
            if not torch.equal(product(x[:count]), whole[:count]):
                return False
            if not torch.equal(product(x[-count:]), whole[-count:]):
                return False
    return True
