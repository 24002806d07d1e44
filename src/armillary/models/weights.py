"""Where a packer gets weights from; and a checkpoint, which is never in memory as a whole. All without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from armillary.models.bfloat16 import Array, widened
from armillary.models.mapped import TensorFile
from armillary.models.parameters import Parameter, parameters
from armillary.models.parts import Part, check_names, invalid, named_parts, tensor_files
from armillary.models.quantized import SUFFIXES, Format
from armillary.models.quantized_tensor import QuantizedTensor
from armillary.models.spec import ModelSpec

_FLOATS = ("F32", "BF16", "F16")


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a parameter.

    Attributes:
        values: [rows, width], or [rows] of a vector. int8 where they are integers as another tool quantised them:
            around zero, or with zero points from zero on; else floats (`armillary.models.bfloat16`).
        scales: of integers: float32 [rows, groups], or [rows] of 8-bit ones.
        zeros: of 4-bit integers with zero points: float32 [rows, groups].
    """

    values: Array
    scales: Array | None = None
    zeros: Array | None = None


class Weights(Protocol):
    """The parameters of one model, some rows at a time; from any thread."""

    spec: ModelSpec

    def kept(self, matrix: Parameter) -> Format | None:
        """The format in which integers of the source can be kept as they are; None where there are none."""
        ...

    def read(self, parameter: Parameter, form: Format | None, first: int, stop: int) -> Rows:
        """Rows [first, stop); integers where `form` is what `kept` gave, else values. They must not be written to."""
        ...

    def forget(self, parameter: Parameter, first: int, stop: int) -> None:
        """Those rows will not be read again; each row is forgotten once."""
        ...


class CheckpointWeights:
    """Those of a model folder, whose files are mapped. Reads the headers; nothing else before it is asked for.

    Raises ArmillaryError: INVALID_CHECKPOINT for missing, unexpected or misshapen tensors, by name.
    """

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self.spec = spec
        self.folder = folder
        self._where = tensor_files(folder)
        self.files = {file: TensorFile(folder / file) for file in sorted(set(self._where.values()))}
        for name, file in self._where.items():
            if name not in self.files[file].tensors:
                invalid(f"{folder / file} must contain tensor {name}, as the index says, and does not")
        self._parts: dict[tuple[str, int | None], list[Part]] = {}
        self._named: dict[str, list[Part]] = {}
        self._quantized: dict[str, QuantizedTensor] = {}
        self._kept: dict[str, Format | None] = {}
        parts = list(named_parts(spec, self._where))
        for part in parts:
            self._named.setdefault(part.parameter, []).append(part)
            self._parts.setdefault((part.parameter, part.expert), []).append(part)
        self._find_quantized(parts)
        check_names(folder, self._wanted(parts), self._where, spec)
        for parameter in parameters(spec):
            for part in self._parts[parameter.name, parameter.expert]:
                self._check(part, parameter)
        self._unplaced()

    def kept(self, matrix: Parameter) -> Format | None:
        """See `Weights`. A matrix that the kernels cannot take as it was quantised gives the format of its values."""
        if matrix.name not in self._kept:
            self._kept[matrix.name] = self._format(self._named[matrix.name])
        return self._kept[matrix.name]

    def _format(self, parts: list[Part]) -> Format | None:
        """The one format that all these can be kept in: the kernels take experts of a layer in one only."""
        found = [self._quantized.get(part.name) for part in parts]
        whole = [tensor for tensor in found if tensor is not None]
        if not whole:
            return None
        if len(whole) == len(found):
            groups = min(tensor.group for tensor in whole)
            if groups and all(tensor.bits == 4 for tensor in whole):
                zero_points = not all(tensor.symmetric for tensor in whole)
                scales = next(s for s in ("float16", "bfloat16", "float32") if all(t.scales_are(s) for t in whole))
                return Format("int4", groups, zero_points, scales=scales)
            if all(tensor.bits == 8 and tensor.groups == 1 and tensor.symmetric for tensor in whole):
                return Format("int8")
        return Format("float16" if all(tensor.half for tensor in whole) else "bfloat16")

    @property
    def integer_matrices(self) -> tuple[int, int]:
        """Matrices of the kernels that other tools quantised, and those of them whose integers cannot be kept."""
        kept = [self.kept(parameter) for parameter in parameters(self.spec) if parameter.width]
        return sum(f is not None for f in kept), sum(
            f is not None and f.element in ("float16", "bfloat16") for f in kept
        )

    def read(self, parameter: Parameter, form: Format | None, first: int, stop: int) -> Rows:
        """See `Weights`."""
        pieces = []
        for part in self._parts[parameter.name, parameter.expert]:
            begin, end = max(first, part.start), min(stop, part.start + part.rows)
            if begin < end:
                pieces.append(self._read(part, form, begin - part.start, end - part.start))
        if len(pieces) == 1:
            return pieces[0]
        if any(piece.scales is not None for piece in pieces):
            values = np.concatenate([piece.values for piece in pieces])
            return Rows(values, _joined([p.scales for p in pieces]), _joined([p.zeros for p in pieces]))
        if len({piece.values.dtype for piece in pieces}) > 1:
            return Rows(np.concatenate([widened(piece.values) for piece in pieces]))
        return Rows(np.concatenate([piece.values for piece in pieces]))

    def forget(self, parameter: Parameter, first: int, stop: int) -> None:
        """See `Weights`."""
        for part in self._parts[parameter.name, parameter.expert]:
            begin, end = max(first, part.start) - part.start, min(stop, part.start + part.rows) - part.start
            if part.name not in self._quantized:
                if begin < end:
                    self.files[self._where[part.name]].forget(part.name, begin, end)
            elif end == part.rows:
                # Its words hold all rows side by side: with the last rows, all pages go.
                for name in _tensors_of(part.name):
                    if name in self._where:
                        file = self.files[self._where[name]]
                        file.forget(name, 0, file.tensors[name].shape[0])

    def _read(self, part: Part, form: Format | None, first: int, stop: int) -> Rows:
        found = self._quantized.get(part.name)
        if found is None:
            return Rows(self._array(part.name)[first:stop])
        if form is None or form.element not in ("int4", "int8") or found.bits != (4 if form.element == "int4" else 8):
            return Rows(found.values(first, stop))
        if form.element == "int8":
            return Rows(found.signed(first, stop) ^ np.int8(-128), found.scales(first, stop)[:, 0].copy())
        repeats = found.width // found.groups // form.group
        scales = found.scales(first, stop).repeat(repeats, 1)
        integers = found.signed(first, stop)
        if not form.zero_points:
            return Rows(integers - np.int8(8), scales)
        return Rows(integers, scales, found.zeros(first, stop).repeat(repeats, 1))

    def _array(self, name: str) -> Array:
        return self.files[self._where[name]].array(name)

    def _find_quantized(self, parts: list[Part]) -> None:
        about = self.spec.quantized
        if about is None:
            return
        widths = {(p.name, p.expert): p.width for p in parameters(self.spec)}
        for part in parts:
            base = part.name.removesuffix(".weight")
            if part.name not in self._where and f"{base}.qweight" in self._where:

                def get(suffix: str, base: str = base) -> Array | None:
                    name = f"{base}.{suffix}"
                    return self._array(name) if name in self._where else None

                width = widths[part.parameter, part.expert]
                self._quantized[part.name] = QuantizedTensor(about, get, base, part.rows, width)

    def _wanted(self, parts: list[Part]) -> set[str]:
        """Names of all tensors that may be there and, but for those that gptq adds, must be."""
        wanted: set[str] = set()
        for part in parts:
            if part.name not in self._quantized:
                wanted.add(part.name)
                continue
            optional = (*_tensors_of(part.name), f"{part.name.removesuffix('.weight')}.bias")
            wanted.update(name for name in optional if name in self._where)
        return wanted

    def _check(self, part: Part, parameter: Parameter) -> None:
        if part.name in self._quantized:
            return
        stored = self.files[self._where[part.name]].tensors[part.name]
        shape = (part.rows, parameter.width) if parameter.width else (part.rows,)
        if stored.shape != shape:
            invalid(f"tensor {part.name} must have shape {list(shape)}, given {list(stored.shape)}")
        if stored.dtype not in _FLOATS:
            invalid(f"tensor {part.name} must be of element type {', '.join(_FLOATS)}, given {stored.dtype}")

    def _unplaced(self) -> None:
        """gptq writes a bias beside each matrix that it quantised; where the model has no place for it, it is zero."""
        placed = {part.name for group in self._parts.values() for part in group}
        for name in self._quantized:
            bias = f"{name.removesuffix('.weight')}.bias"
            if bias in self._where and bias not in placed and widened(self._array(bias)).any():
                invalid(f"tensor {bias} must be zero, since config.json gives it no place, and is not")


def _joined(parts: list[Array | None]) -> Array | None:
    present = [part for part in parts if part is not None]
    return np.concatenate(present) if present else None


def _tensors_of(name: str) -> list[str]:
    return [f"{name.removesuffix('.weight')}.{suffix}" for suffix in SUFFIXES]
