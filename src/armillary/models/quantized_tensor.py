"""One matrix as gptq or awq left it: small integers, scales and zero points, packed into 32-bit words.

Both keep the matrix turned around, inputs in rows, and a weight is (q - zero) * scale:

| | gptq | awq (GEMM) |
|---|---|---|
| qweight | [in * bits / 32, out]: a word holds consecutive inputs | [in, out / 8]: eight outputs a word, interleaved |
| qzeros | [groups, out * bits / 32]: consecutive outputs | [groups, out / 8], interleaved likewise |
| scales | [groups, out] | [groups, out] |
| g_idx | [in]: the group of each input, where there is one | none: inputs are in the order of their groups |

The first version of gptq's format has words of zero points less one in each place. Whole words were subtracted, so a
zero point of 0 borrowed from the next place; tools that write and read both versions do it so (GPTQModel).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from armillary.errors import ArmillaryError, Code
from armillary.models.bfloat16 import Array, converted, widened
from armillary.models.quantized import GROUPS, SUFFIXES
from armillary.models.spec import QuantizedSpec

_WORD = 32
_ONES = {4: 0x11111111, 8: 0x01010101}
"""A word with one in each place."""
_AWQ_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]
"""Which four bits of a word hold its outputs 0, 1, 2, ..."""
_HALF_MOST = 60_000.0
"""Values up to which float16 is taken, with some room below its largest."""


class QuantizedTensor:
    """A matrix [rows, width], whichever tool packed it.

    Args:
        get: the tensors by their suffix.
        name: for messages.

    Attributes:
        bits: 4 or 8.
        groups: how many scales a row has.
        ordered: whether inputs are in the order of their groups, all groups of one size.

    Raises ArmillaryError: INVALID_CHECKPOINT for tensors that do not fit the matrix or each other, by name.
    """

    def __init__(
        self, spec: QuantizedSpec, get: Callable[[str], Array | None], name: str, rows: int, width: int
    ) -> None:
        self._awq = spec.method == "awq"
        self._offset = spec.zero_offset
        self._name = name
        self.rows, self.width = rows, width
        found = {suffix: get(suffix) for suffix in SUFFIXES}
        weight, zeros, scales = (self._present(found, suffix) for suffix in SUFFIXES[:3])
        if weight.ndim != 2 or scales.ndim != 2 or weight.dtype != np.int32 or zeros.dtype != np.int32:
            self._invalid("qweight and qzeros must be matrices of 32-bit integers")
        self._weight, self._zeros, self._scales = weight, zeros, scales
        self.groups = scales.shape[0]
        inputs = weight.shape[0]
        self.bits = 4 if self._awq else (_WORD * inputs) // max(1, width)
        if self.bits not in (4, 8) or (self._words(width) != inputs and not self._awq):
            self._invalid(f"qweight must hold {width} inputs of 4 or 8 bits, given {inputs} rows of 32 bits")
        packed = rows * self.bits // _WORD
        wanted = {
            "qweight": (width, packed) if self._awq else (inputs, rows),
            "qzeros": (self.groups, packed),
            "scales": (self.groups, rows),
        }
        for suffix, shape in wanted.items():
            given = self._present(found, suffix).shape
            if given != shape or not self.groups:
                self._invalid(f"{suffix} must have shape {list(shape)}, given {list(given)}")
        self._groups_of = self._read_order(found["g_idx"])
        self.ordered = self.width % self.groups == 0 and bool((self._groups_of == self._even()).all())

    @property
    def group(self) -> int:
        """Inputs of one group that the kernels take, 0 where they take none; a larger one is several with one scale."""
        size = self.width // self.groups if self.ordered else 0
        return next((group for group in reversed(GROUPS) if size and size % group == 0), 0)

    @cached_property
    def symmetric(self) -> bool:
        """Whether every zero point is the middle one, so that integers stand around zero."""
        return bool((self._zero_points(0, self.rows) == 1 << self.bits - 1).all())

    def scales_are(self, dtype: str) -> bool:
        """Whether every scale is a number of a format of `armillary.models.quantized.FLOAT_BYTES`, as NaN is of all."""
        scales = widened(self._scales)
        return bool(np.array_equal(widened(converted(scales, dtype)), scales, equal_nan=True))

    @cached_property
    def half(self) -> bool:
        """Whether its values are within what float16 holds."""
        return float(np.abs(widened(self._scales)).max()) * (1 << self.bits) < _HALF_MOST

    def integers(self, first: int, stop: int) -> npt.NDArray[np.uint8]:
        """Rows [first, stop) as they were packed, from 0 on: [stop - first, width]."""
        if self._awq:
            return self._awq_columns(self._weight, first, stop)
        # A word holds inputs, so those of a word follow each other within a row of the result.
        found = _unpacked(self._weight[:, first:stop], self.bits)
        return found.transpose(1, 0, 2).reshape(stop - first, -1)

    def signed(self, first: int, stop: int) -> npt.NDArray[np.int8]:
        """The same bits as int8."""
        return self.integers(first, stop).view(np.int8)

    def scales(self, first: int, stop: int) -> npt.NDArray[np.float32]:
        """[stop - first, groups]."""
        return np.ascontiguousarray(widened(self._scales[:, first:stop]).T)

    def zeros(self, first: int, stop: int) -> npt.NDArray[np.float32]:
        """Zero points in units of the integers, [stop - first, groups]."""
        return self._zero_points(first, stop).astype(np.float32)

    def values(self, first: int, stop: int) -> npt.NDArray[np.float32]:
        """What rows [first, stop) stand for, [stop - first, width]."""
        which = self._groups_of
        found = self.integers(first, stop).astype(np.float32)
        found -= self.zeros(first, stop)[:, which]
        found *= self.scales(first, stop)[:, which]
        return found

    def _zero_points(self, first: int, stop: int) -> npt.NDArray[np.uint8]:
        """[stop - first, groups]."""
        if self._awq:
            return self._awq_columns(self._zeros, first, stop)
        words = self._zeros.view(np.uint32) + np.uint32(self._offset * _ONES[self.bits])
        found = _unpacked(words, self.bits).reshape(self.groups, -1)
        return np.ascontiguousarray(found[:, first:stop].T)

    def _awq_columns(self, packed: Array, first: int, stop: int) -> npt.NDArray[np.uint8]:
        """Columns [first, stop) of interleaved words, turned into rows."""
        begin = first // 8
        found = _unpacked(packed[:, begin : -(-stop // 8)], 4)[..., _AWQ_PLACES].reshape(len(packed), -1)
        return np.ascontiguousarray(found[:, first - 8 * begin : stop - 8 * begin].T)

    def _words(self, count: int) -> int:
        return -(-count * self.bits // _WORD)

    def _even(self) -> npt.NDArray[np.int64]:
        return np.repeat(np.arange(self.groups), self.width // self.groups)

    def _read_order(self, order: Array | None) -> npt.NDArray[np.int64]:
        """The group of each input, [width]."""
        if self._awq or order is None:
            if self.width % self.groups:
                self._invalid(f"scales must have a number of groups that divides {self.width}, given {self.groups}")
            return self._even()
        found = order.astype(np.int64)
        if found.shape != (self.width,) or int(found.min()) < 0 or int(found.max()) >= self.groups:
            self._invalid(f"g_idx must name one of {self.groups} groups for each of {self.width} inputs")
        return found

    def _present(self, found: dict[str, Array | None], suffix: str) -> Array:
        tensor = found[suffix]
        if tensor is None:
            self._invalid(f"{suffix} must be there, and is not")
        return tensor

    def _invalid(self, message: str) -> NoReturn:
        raise ArmillaryError(Code.INVALID_CHECKPOINT, f"tensor {self._name}: {message}", "model")


def _unpacked(words: Array, bits: int) -> npt.NDArray[np.uint8]:
    """Words [n, m] as the integers that each holds, lowest bits first: [n, m, 32 / bits]."""
    parts = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, 4)
    if bits == 8:
        return parts
    return np.stack([parts & 15, parts >> 4], axis=-1).reshape(*words.shape, 8)
