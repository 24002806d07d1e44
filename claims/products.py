"""Matrix products of native weights, for the claims about kernels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from armillary.errors import ArmillaryError, Code
from armillary.kernels import native
from armillary.models.quantized import ELEMENTS

WIDTH, OUT = 1024, 4096
"""Inputs and outputs: a layer's query, key and value matrices of a 0.6B model."""
FORMATS: dict[str, tuple[int, int, bool]] = {
    "float32": (0, 0, False),
    "bfloat16": (1, 0, False),
    "int8": (3, 0, False),
    "int8 by int8": (3, 0, True),
    "int4": (4, 32, False),
    "int4 by int8": (4, 32, True),
}
"""Of weights, by int8 where what they are multiplied with is rounded to 8 bits too: the element of
`src/native/kernels.h`, weights that share a scale (0: those of one output), and whether inputs are rounded."""
LEAST_S = 0.02
"""Processor time of one measurement, at least."""

Floats = NDArray[np.float32]


class Product:
    """A matrix packed for one path of the native kernels, in one of `FORMATS`."""

    def __init__(self, path: str, matrix: Floats, kind: str = "float32") -> None:
        extension: Any = native.extension()
        element, group, rounded = FORMATS[kind]
        scales = ELEMENTS["bfloat16"] if group else 0  # as int4 has them that is chosen when a checkpoint is read
        shape = (*matrix.shape, element, group, False, False, rounded, scales)
        memory = np.empty(extension.weight_bytes(path, *shape) + 64, np.uint8)
        start = -memory.ctypes.data % 64
        self.bytes = len(memory) - 64
        self.weight = extension.Weight(path, memory[start : start + self.bytes], *shape)
        self.weight.pack(matrix)
        self.rows = len(matrix)

    def __call__(self, inputs: Floats, out: Floats | None = None) -> Floats:
        if out is None:
            out = np.empty((len(inputs), self.rows), np.float32)
        extension: Any = native.extension()
        extension.linear(self.weight, inputs, out)
        return out


@contextmanager
def torch_alone() -> Iterator[None]:
    """Lets torch compute with one thread meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def needs_native() -> str:
    """The path that is taken on this machine."""
    path = native.chosen()
    if path is None:
        raise ArmillaryError(
            Code.INVALID_DEPLOYMENT, f"this claim must have the native kernels, given none: {native.why()}"
        )
    return path


def matrix_of(seed: int) -> Floats:
    return np.random.default_rng(seed).normal(size=(OUT, WIDTH)).astype(np.float32) / np.float32(WIDTH**0.5)


def seconds(run: Callable[[], object]) -> float:
    """Processor time of one call."""
    count, start = 0, time.process_time()
    while (taken := time.process_time() - start) < LEAST_S:
        run()
        count += 1
    return taken / count


def timed(run: Callable[..., object], *arguments: object) -> Callable[[], float]:
    """What measures such a call."""
    return partial(seconds, partial(run, *arguments))
