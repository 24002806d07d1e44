"""Number formats of packed matrices, and which matrix takes which."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from armillary.models.bfloat16 import converted, widened
from armillary.models.parameters import Parameter

SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
"""Tensors that gptq and awq make of one matrix."""
INTEGERS = ("int8", "int4")
"""Formats that weights are quantised to."""
GROUPS = (32, 64, 128)
"""Inputs that may share one scale in a 4-bit matrix."""
FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number in the formats that are not quantised."""
ELEMENTS = {"float32": 0, "bfloat16": 1, "float16": 2, "int8": 3, "int4": 4}
"""Formats by the numbers that they have in `src/native/kernels.h`."""


@dataclass(frozen=True, slots=True)
class Format:
    """How one matrix is kept.

    Attributes:
        element: of `ELEMENTS`. int8 has one scale an output; int4 one for every `group` inputs of an output.
        group: 0 but for int4.
        zero_points: whether int4 groups have a zero point beside their scale.
        int8_activations: multiply integers with integers: each row is quantised as it comes.
        scales: the number format of int4's scales, of `FLOAT_BYTES`, in which each of them is exact.
    """

    element: str
    group: int = 0
    zero_points: bool = False
    int8_activations: bool = False
    scales: str = "float32"

    def __str__(self) -> str:
        text = f"{self.element} in groups of {self.group}" if self.group else self.element
        return f"{text} with zero points" if self.zero_points else text


@dataclass(frozen=True, slots=True)
class Quantization:
    """What is asked of all matrices.

    Attributes:
        dtype: of `ELEMENTS`.
        group: inputs that share one scale, of int4.
        int8_activations: see `Format`.
    """

    dtype: str
    group: int = GROUPS[0]
    int8_activations: bool = False

    def plain(self, checkpoint: str) -> str:
        """The number format of what is not quantised: tables, routers, keys and values."""
        return checkpoint if self.dtype in INTEGERS else self.dtype

    def format(self, matrix: Parameter, checkpoint: str) -> Format:
        """How this matrix is kept; `checkpoint` is the number format that it comes in.

        A router decides over whole experts from small differences, and the output matrix over every token: the first
        stays as it is, the second takes 8 bits, weights alone. So does a matrix that groups do not divide. Scales that
        are chosen here are chosen among bfloat16's numbers, which reach as far as float32's: no matrix is too large or
        too small for them, and what is kept takes the same bytes whatever the weights are.
        """
        if self.dtype not in INTEGERS or matrix.kind == "router":
            return Format(self.plain(checkpoint))
        if matrix.kind in ("embed", "head"):
            return Format("int8")
        if self.dtype == "int8" or matrix.width % self.group:
            return Format("int8", int8_activations=self.int8_activations)
        return Format("int4", self.group, False, self.int8_activations, "bfloat16")

    def kept(self, matrix: Parameter, form: Format) -> Format:
        """How this matrix is kept that comes in a format of its own. What goes into a router or the output matrix is
        never rounded to 8 bits."""
        narrow = self.int8_activations and form.element in INTEGERS and matrix.kind not in ("embed", "head", "router")
        return replace(form, int8_activations=narrow)


def rounded(value: float, dtype: str) -> float:
    """The number of `FLOAT_BYTES`' formats that is nearest to a number; of two, the even one."""
    return float(widened(converted(np.array([value], dtype=np.float32), dtype))[0])
