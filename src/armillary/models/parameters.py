"""Every parameter of a decoder, by our own names: what a packer asks for one after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from armillary.models.parts import layout
from armillary.models.spec import LayerSpec, ModelSpec

PAIRED = frozenset({"gate_up", "expert_gate_up"})
"""Kinds whose rows are gates and then as many partners."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One matrix [rows, width] or vector [rows].

    Attributes:
        name: as `Decoder.named_parameters` has it; `embed`, `norm`, `head`, `layers.3.qkv`. The output matrix of a
            tied model is its `embed`.
        width: 0 for a vector.
        expert: which matrix, where the parameter stacks one per expert.
    """

    name: str
    rows: int
    width: int = 0
    expert: int | None = None

    @property
    def kind(self) -> str:
        """The name without its layer."""
        return self.name.rpartition(".")[2]

    @property
    def key(self) -> str:
        """A name of its own for each expert's matrix."""
        return self.name if self.expert is None else f"{self.name}.{self.expert}"

    @property
    def paired(self) -> bool:
        """Whether its rows are gates and their partners."""
        return self.kind in PAIRED


def parameters(spec: ModelSpec) -> Iterator[Parameter]:
    """Every parameter of this model once, in the order of a checkpoint."""
    found: dict[tuple[str, int | None], int] = {}
    for part in layout(spec):
        key = (part.parameter, part.expert)
        found[key] = found.get(key, 0) + part.rows
    for (name, expert), rows in found.items():
        yield Parameter(name, rows, _width(spec, name), expert)


def _width(spec: ModelSpec, name: str) -> int:
    """Inputs of a matrix, 0 of a vector."""
    if name in ("embed", "head"):
        return spec.hidden_size
    _, _, rest = name.partition(".")
    index, _, kind = rest.partition(".")
    if not kind or kind.endswith(("norm", "bias")):
        return 0
    layer: LayerSpec = spec.layers[int(index)]
    if kind == "out":
        return layer.attention.heads * layer.attention.head_dim
    if kind in ("down", "expert_down"):
        return layer.mlp.intermediate
    return spec.hidden_size
