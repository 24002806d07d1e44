"""One matrix as gptq or awq left it: small integers, scales and zero points, packed into 32-bit words.

Both keep the matrix turned around, inputs in rows, and a weight is (q - zero) * scale:

| | gptq | awq (GEMM) |
|---|---|---|
| qweight | [in * bits / 32, out]: a word holds consecutive inputs | [in, out / 8]: eight outputs a word, interleaved |
| qzeros | [groups, out * bits / 32]: consecutive outputs | [groups, out / 8], interleaved likewise |
| scales | [groups, out] | [groups, out] |
| g_idx | [in]: the group of each input, where there is one | none: inputs are in the order of their groups |
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NoReturn

import torch
from torch import Tensor

from armillary.errors import ArmillaryError, Code
from armillary.models.quantized import GROUPS, SUFFIXES
from armillary.models.spec import QuantizedSpec

_WORD = 32
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
        self, spec: QuantizedSpec, get: Callable[[str], Tensor | None], name: str, rows: int, width: int
    ) -> None:
        self._awq = spec.method == "awq"
        self._offset = spec.zero_offset
        self._name = name
        self.rows, self.width = rows, width
        found = {suffix: get(suffix) for suffix in SUFFIXES}
        weight, zeros, scales = (self._present(found, suffix) for suffix in SUFFIXES[:3])
        if weight.ndim != 2 or scales.ndim != 2 or weight.dtype != torch.int32 or zeros.dtype != torch.int32:
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
            given = tuple(self._present(found, suffix).shape)
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
        zeros = self._stored_zeros(0, self.rows)
        return bool((zeros == (1 << self.bits - 1) - self._offset).all())

    @cached_property
    def half(self) -> bool:
        """Whether its values are within what float16 holds."""
        return float(self._scales.abs().max().float()) * (1 << self.bits) < _HALF_MOST

    def integers(self, first: int, stop: int) -> Tensor:
        """Rows [first, stop) as they were packed: uint8 [stop - first, width], from 0 on."""
        if self._awq:
            return self._awq_columns(self._weight, first, stop)
        # A word holds inputs, so bytes of a word follow each other within a row of the result.
        words = self._weight[:, first:stop].contiguous()
        return _unpacked(words.view(torch.uint8).view(*words.shape, 4), self.bits).transpose(0, 1).flatten(1)

    def signed(self, first: int, stop: int) -> Tensor:
        """The same bits as int8."""
        return self.integers(first, stop).view(torch.int8)

    def scales(self, first: int, stop: int) -> Tensor:
        """float32 [stop - first, groups]."""
        return self._scales[:, first:stop].t().float().contiguous()

    def zeros(self, first: int, stop: int) -> Tensor:
        """Zero points in units of the integers, float32 [stop - first, groups]."""
        return self._stored_zeros(first, stop).float() + float(self._offset)

    def values(self, first: int, stop: int) -> Tensor:
        """What rows [first, stop) stand for, float32 [stop - first, width]."""
        which = self._groups_of
        found = self.integers(first, stop).float()
        found -= self.zeros(first, stop)[:, which]
        found *= self.scales(first, stop)[:, which]
        return found

    def _stored_zeros(self, first: int, stop: int) -> Tensor:
        """uint8 [stop - first, groups]."""
        if self._awq:
            return self._awq_columns(self._zeros, first, stop)
        words = self._zeros.contiguous()
        found = _unpacked(words.view(torch.uint8).view(*words.shape, 4), self.bits).flatten(1)
        return found[:, first:stop].t().contiguous()

    def _awq_columns(self, packed: Tensor, first: int, stop: int) -> Tensor:
        """Columns [first, stop) of interleaved words, turned into rows."""
        begin = first // 8
        words = packed[:, begin : -(-stop // 8)].contiguous()
        found = _unpacked(words.view(torch.uint8).view(*words.shape, 4), 4)[..., _AWQ_PLACES].flatten(1)
        return found[:, first - 8 * begin : stop - 8 * begin].t().contiguous()

    def _words(self, count: int) -> int:
        return -(-count * self.bits // _WORD)

    def _even(self) -> Tensor:
        return torch.arange(self.width) // (self.width // self.groups)

    def _read_order(self, order: Tensor | None) -> Tensor:
        """The group of each input, int64 [width]."""
        if self._awq or order is None:
            if self.width % self.groups:
                self._invalid(f"scales must have a number of groups that divides {self.width}, given {self.groups}")
            return self._even()
        found = order.long()
        if tuple(found.shape) != (self.width,) or int(found.min()) < 0 or int(found.max()) >= self.groups:
            self._invalid(f"g_idx must name one of {self.groups} groups for each of {self.width} inputs")
        return found

    def _present(self, found: dict[str, Tensor | None], suffix: str) -> Tensor:
        tensor = found[suffix]
        if tensor is None:
            self._invalid(f"{suffix} must be there, and is not")
        return tensor

    def _invalid(self, message: str) -> NoReturn:
        raise ArmillaryError(Code.INVALID_CHECKPOINT, f"tensor {self._name}: {message}", "model")


def _unpacked(parts: Tensor, bits: int) -> Tensor:
    """Bytes of words, uint8 [..., 4], as the integers that they hold, lowest bits first: uint8 [..., 32 / bits]."""
    if bits == 8:
        return parts
    return torch.stack([parts & 15, parts >> 4], dim=-1).flatten(-2)
