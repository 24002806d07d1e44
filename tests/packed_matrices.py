"""Matrices packed for the native kernels, and their products, for the tests of linear layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

native: Any = pytest.importorskip("armillary.kernels._native")

PATHS = list(native.paths()) + list(getattr(native, "emulated_paths", list)())
ELEMENTS = ("f32", "bf16", "f16", "i8", "i4")
BF16, F16 = ELEMENTS.index("bf16"), ELEMENTS.index("f16")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
PAIRED_PRODUCTS = ("avx2", "avx512_plain", "avx512", "avx512_bf16", "emulated_avx512", "emulated_avx512_bf16")
"""Paths that multiply 8- and 4-bit weights with rows rounded to 16 bits."""


def aligned(count: int) -> np.ndarray:
    """Bytes that begin at a multiple of 64, as packed matrices must; not zero, since packing must not rely on it."""
    memory = np.full(count + 64, 0xA5, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + count]


@dataclass
class Packed:
    """A packed matrix. `values` [out, in] float64 are what it is multiplied as."""

    path: str
    out: int
    width: int
    element: str = "f32"
    group: int = 0
    zero_points: bool = False
    paired: bool = False
    int8_activations: bool = False
    scales: int = 0
    memory: np.ndarray = field(init=False)
    weight: Any = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.out, self.width, ELEMENTS.index(self.element), self.group, self.zero_points, self.paired)
        more = (self.int8_activations, self.scales)
        self.memory = aligned(native.weight_bytes(self.path, *shape, *more))
        self.weight = native.Weight(self.path, self.memory, *shape, *more)

    @property
    def outputs(self) -> int:
        return self.out // 2 if self.paired else self.out

    @property
    def values(self) -> np.ndarray:
        out = np.empty((self.out, self.width), np.float32)
        self.weight.rows(np.arange(self.out), out)
        return out.astype(np.float64)

    def inputs(self, x: np.ndarray) -> np.ndarray:
        """Rows [n, width] in float64 as they are multiplied: rounded to bfloat16 for products of it; to 16 bits, with a
        scale a block of inputs, for products of integers; to 8 bits, with a scale a group or a row, if asked for."""
        if self.int8_activations:
            return by_blocks(x, self.group or self.width, 127)
        narrow = ("bf16", "i8", "i4") if "amx" in self.path else ("bf16",) if "avx512_bf16" in self.path else ()
        if self.element in narrow:
            return torch.from_numpy(x).bfloat16().double().numpy()
        if self.path in PAIRED_PRODUCTS and self.element in ("i8", "i4"):
            return by_blocks(x, self.group or 128, 32767)
        return x.astype(np.float64)

    def __call__(
        self,
        x: np.ndarray,
        bias: np.ndarray | None = None,
        residual: np.ndarray | None = None,
        activation: str = "silu",
        threads: int = 1,
        cuts: list[int] | None = None,
    ) -> np.ndarray:
        y = np.full((len(x), self.outputs), np.nan, np.float32)
        native.linear(self.weight, x, y, bias, residual, ACTIVATIONS.index(activation), threads, cuts or [])
        return y


def packed(path: str, rows: np.ndarray | torch.Tensor, element: str = "f32", **options: Any) -> Packed:
    """Rows [out, in], quantised where the element says so."""
    matrix = Packed(path, rows.shape[0], rows.shape[1], element, **options)
    matrix.weight.pack(rows)
    return matrix


def by_blocks(x: np.ndarray, block: int, most: int) -> np.ndarray:
    """Rows rounded block by block to whole multiples of a scale, of which the largest value is `most`."""
    rounded = np.empty(x.shape)
    for first in range(0, x.shape[1], block):
        part = x[:, first : first + block]
        largest = np.abs(part).max(1, keepdims=True)
        inverse = np.divide(np.float32(most), largest, out=np.zeros_like(largest), where=largest > 0)
        rounded[:, first : first + block] = np.rint(part * inverse) * (largest / np.float32(most)).astype(np.float64)
    return rounded


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool((a.view(np.int32) == b.view(np.int32)).all())


def rows_do_not_depend_on_neighbours(multiply: Any, x: np.ndarray) -> bool:
    """Whether each row's product has the same bits alone, in pieces and with all others; `multiply` takes rows of x."""
    whole = multiply(x)
    for count in (1, 2, 3, 5, 7, 16, 17, 64):
        for first in {0, 1, len(x) // 2, max(0, len(x) - count)}:
            piece = x[first : first + count]
            if not same_bits(multiply(piece), whole[first : first + len(piece)]):
                return False
    return True
