"""Tensors of a safetensors file, mapped: read where they lie, and let go of piece by piece.

Pages of a mapping that were read count as memory of this process until they are given up, so whoever reads a file
larger than the memory that it wants to take says when it is done with a piece.
"""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from armillary.errors import ArmillaryError, Code
from armillary.models.bfloat16 import Array

_DTYPES = {name: np.dtype(kind) for name, kind in
           {"F32": "<f4", "BF16": "<u2", "F16": "<f2", "I64": "<i8", "I32": "<i4"}.items()}  # fmt: skip
"""Element types as files name them; see `armillary.models.bfloat16` for one that numpy does not have."""
_HEADER_LIMIT = 100 << 20
"""Bytes of the longest header that the format allows."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies in its file; `start` and `stop` are bytes of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile:
    """One file, mapped for as long as this object or a tensor of it lives. From any thread.

    Raises ArmillaryError: INVALID_CHECKPOINT for a file that is not what the format says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                # A private mapping can be written to, which torch wants of memory; nothing is.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            self._invalid(str(error))
        self.tensors = self._read_header()

    def array(self, name: str) -> Array:
        """The tensor, as it lies in the file. It must not be written to."""
        found = self.tensors[name]
        if found.dtype not in _DTYPES:
            known = ", ".join(_DTYPES)
            _refuse(f"tensor {name} must be of element type {known}, given {found.dtype}")
        dtype, count = _DTYPES[found.dtype], math.prod(found.shape)
        if found.start % dtype.itemsize:
            return np.frombuffer(bytearray(self._map[found.start : found.stop]), dtype).reshape(found.shape)
        return np.frombuffer(self._map, dtype, count, found.start if count else 0).reshape(found.shape)

    def forget(self, name: str, first: int, stop: int) -> None:
        """Give up the pages of rows [first, stop) of a tensor; reading them again reads the file again."""
        found = self.tensors[name]
        row = (found.stop - found.start) // max(1, found.shape[0] if found.shape else 1)
        begin = (found.start + first * row) // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, begin, found.start + stop * row - begin)

    def _read_header(self) -> dict[str, Stored]:
        size = len(self._map)
        length = int.from_bytes(self._map[:8], "little") if size >= 8 else size
        if length > min(size - 8, _HEADER_LIMIT):
            self._invalid(f"a header of {length} bytes in a file of {size}")
        try:
            header: dict[str, Any] = json.loads(self._map[8 : 8 + length])
            found = {
                name: Stored(
                    str(about["dtype"]),
                    tuple(int(count) for count in about["shape"]),
                    8 + length + int(about["data_offsets"][0]),
                    8 + length + int(about["data_offsets"][1]),
                )
                for name, about in header.items()
                if name != "__metadata__"
            }
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            self._invalid(f"a header that cannot be read ({error})")
        for name, tensor in found.items():
            wide = _DTYPES[tensor.dtype].itemsize * math.prod(tensor.shape) if tensor.dtype in _DTYPES else None
            holds = tensor.stop - tensor.start
            if min(tensor.shape, default=0) < 0 or not 8 + length <= tensor.start <= tensor.stop <= size:
                self._invalid(f"tensor {name} outside of its {size} bytes")
            if wide is not None and holds != wide:
                self._invalid(f"tensor {name} of {holds} bytes where its shape takes {wide}")
        return found

    def _invalid(self, given: str) -> NoReturn:
        _refuse(f"{self.path} must be a safetensors file, given {given}")


def _refuse(message: str) -> NoReturn:
    raise ArmillaryError(Code.INVALID_CHECKPOINT, message, "model")
