"""The weights of a decoder in the native kernels' own layout, in one stretch of memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from armillary.kernels import native
from armillary.models.bfloat16 import Array, converted
from armillary.models.parameters import Parameter, parameters
from armillary.models.quantized import ELEMENTS, FLOAT_BYTES, Format, Quantization
from armillary.models.spec import ModelSpec
from armillary.models.weights import Weights

_PIECE_VALUES = 1 << 20
"""Values packed at a time."""
_ROWS = 64
"""Rows from a multiple of this on can be packed beside others."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter and its place.

    Attributes:
        form: of a matrix that is multiplied with; None for a vector (float32) and for an embedding (plain rows).
        dtype: of the numbers of a vector or an embedding.
        offset, size: bytes.
    """

    parameter: Parameter
    form: Format | None
    dtype: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Where everything lies.

    Attributes:
        path: of the kernels that read it.
        size: bytes of all.
    """

    path: str
    entries: tuple[Entry, ...]
    size: int

    @property
    def formats(self) -> dict[Format, int]:
        """How many values are kept in each format, most first."""
        found: dict[Format, int] = {}
        for entry in self.entries:
            if entry.form is not None:
                count = entry.parameter.rows * entry.parameter.width
                found[entry.form] = found.get(entry.form, 0) + count
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def describe(self) -> str:
        """All of it, in a form that two layouts share if and only if they are the same."""
        rows = [
            [e.parameter.key, e.parameter.rows, e.parameter.width, e.offset, e.size, e.dtype, str(e.form),
             bool(e.form and e.form.int8_activations), e.form and e.form.scales]
            for e in self.entries
        ]  # fmt: skip
        return json.dumps([self.path, self.size, rows])


def make_layout(
    spec: ModelSpec, path: str, asked: Quantization, kept: Callable[[Parameter], Format | None] = lambda matrix: None
) -> PackedLayout:
    """Work out what everything takes. Allocates nothing.

    Args:
        asked: for all matrices.
        kept: what a source keeps as it is (`Weights.kept`); wins over `asked`.
    """
    extension = native.extension()
    entries: list[Entry] = []
    offset = 0
    for parameter in parameters(spec):
        form: Format | None = None
        dtype = "float32"
        if not parameter.width:
            size = 4 * parameter.rows
        elif parameter.name == "embed" and not spec.tied:
            dtype = asked.plain(spec.dtype)
            size = FLOAT_BYTES[dtype] * parameter.rows * parameter.width
        else:
            own = kept(parameter)
            form = asked.format(parameter, spec.dtype) if own is None else asked.kept(parameter, own)
            size = extension.weight_bytes(path, *_shape(parameter, form))
        entries.append(Entry(parameter, form, dtype, offset, size))
        offset += -(-size // native.ALIGNMENT) * native.ALIGNMENT
    return PackedLayout(path, tuple(entries), offset)


class PackedWeights:
    """Parameters by their keys (`Parameter.key`), in memory laid out as `layout` says.

    Args:
        memory: uint8 [layout.size] from `native.aligned`, or a mapped file; filled already, or filled by `pack`.
    """

    def __init__(self, layout: PackedLayout, memory: native.Bytes) -> None:
        self.layout = layout
        self.memory = memory
        self._entries = {entry.parameter.key: entry for entry in layout.entries}
        extension = native.extension()
        self._weights = {
            key: extension.Weight(layout.path, self._bytes(entry), *_shape(entry.parameter, entry.form))
            for key, entry in self._entries.items()
            if entry.form is not None
        }

    def matrix(self, key: str) -> Any:
        """The `armillary.kernels._native.Weight` of a matrix."""
        return self._weights[key]

    def plain(self, key: str) -> Array | None:
        """A vector, or an embedding that no matrix stands for; None where the model has none."""
        entry = self._entries.get(key)
        return None if entry is None or entry.form is not None else self._plain(entry)

    def pack(self, weights: Weights, threads: int, on_bytes: Callable[[int], None] = lambda count: None) -> None:
        """Fill the memory, `threads` pieces at a time, and let go of each piece's source.

        Args:
            on_bytes: is told how many bytes each piece fills; all together are `layout.size`.
        """
        work = [(entry, first, stop) for entry in self.layout.entries for first, stop in _pieces(entry)]
        told = 0
        with ThreadPoolExecutor(max(1, threads), "pack") as pool:
            try:
                for entry, first, stop in pool.map(lambda piece: self._fill(weights, *piece), work):
                    weights.forget(entry.parameter, first, stop)
                    filled = entry.offset + entry.size * stop // entry.parameter.rows
                    on_bytes(filled - told)
                    told = filled
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        on_bytes(self.layout.size - told)

    def _fill(self, weights: Weights, entry: Entry, first: int, stop: int) -> tuple[Entry, int, int]:
        parameter = entry.parameter
        found = weights.read(parameter, entry.form, first, stop)
        if entry.form is not None:
            self._weights[parameter.key].pack(found.values, first, found.scales, found.zeros)
        else:
            self._plain(entry)[first:stop] = converted(found.values, entry.dtype)
        return entry, first, stop

    def _plain(self, entry: Entry) -> Array:
        found: Array = self._bytes(entry).view("uint16" if entry.dtype == "bfloat16" else entry.dtype)
        return found.reshape(entry.parameter.rows, -1) if entry.parameter.width else found

    def _bytes(self, entry: Entry) -> native.Bytes:
        return self.memory[entry.offset : entry.offset + entry.size]


def packed(
    weights: Weights, asked: Quantization, path: str, threads: int = 1, on_bytes: Callable[[int], None] | None = None
) -> PackedWeights:
    """Everything in one call, in new memory."""
    layout = make_layout(weights.spec, path, asked, weights.kept)
    found = PackedWeights(layout, native.aligned(layout.size))
    found.pack(weights, threads, on_bytes or (lambda count: None))
    return found


def trial(form: Format, path: str, paired: bool) -> bytes:
    """A small matrix as this build of the kernels packs it: who reads packed bytes later learns whether it still
    packs the same way."""
    width = form.group * 2 if form.group else 96
    shape = Parameter("trial.gate_up" if paired else "trial.out", 2 * _ROWS + 32, width)
    extension = native.extension()
    memory = native.aligned(extension.weight_bytes(path, *_shape(shape, form)))
    memory.fill(0)
    spread = np.arange(shape.rows * width, dtype=np.int64) * 2654435761 % 4093
    values = (spread.astype(np.float32) - np.float32(2046)) * np.float32(1e-3)
    extension.Weight(path, memory, *_shape(shape, form)).pack(values.reshape(shape.rows, width), 0)
    return memory.tobytes()


def _shape(parameter: Parameter, form: Format | None) -> tuple[int, int, int, int, bool, bool, bool, int]:
    """What the extension wants to know about a matrix, in its order."""
    if form is None:
        raise TypeError(f"{parameter.key} is no matrix")
    element = ELEMENTS[form.element]
    return (
        parameter.rows, parameter.width, element, form.group, form.zero_points, parameter.paired, form.int8_activations,
        ELEMENTS[form.scales],
    )  # fmt: skip


def _pieces(entry: Entry) -> Iterator[tuple[int, int]]:
    parameter = entry.parameter
    step = _ROWS * max(1, math.floor(_PIECE_VALUES / max(1, parameter.width) / _ROWS))
    for first in range(0, parameter.rows, step):
        yield first, min(first + step, parameter.rows)
