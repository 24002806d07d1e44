"""The shape of a model: what its config.json says about bytes and operations, without its weights.

Families that are computed here are read by `armillary.models.config`, so that their counts are those of the engine.
Others are read by the rules of `armillary.twin.foreign`.

One multiply-add is two operations. A position of a step passes every matrix of the layers once; a pair is a query
and a key that it looks at; a row is a position whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from armillary.errors import ArmillaryError, Code
from armillary.models.spec import LayerSpec, ModelSpec
from armillary.twin.stored import QUANTISED, stored_dtype

BYTES = {
    "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "float8": 1.0, "int8": 1.0, "int4": 0.5 + 2 / 32,
}  # fmt: skip
"""Bytes of an element; int4 has one 16-bit scale for 32 weights."""


MOST_LAYERS = 10_000
_DTYPE = {"dtype", "torch_dtype"}


@dataclass(frozen=True, slots=True)
class Matrix:
    """Equal matrices, over all layers and experts.

    Attributes:
        name: q, kv, out, gate, up, down, router, expert_gate, ...; embedding and head for the two of the vocabulary.
        rows, columns: outputs and inputs of one.
        count: how many there are.
        experts, chosen: of how many experts each layer has one, and how many of them take a token; 0 where all do.
    """

    name: str
    rows: int
    columns: int
    count: int
    experts: int = 0
    chosen: int = 0

    @property
    def parameters(self) -> int:
        """Weights of all of them."""
        return self.rows * self.columns * self.count

    @property
    def active(self) -> float:
        """Weights that one token is multiplied with."""
        return self.parameters * self.chosen / self.experts if self.experts else float(self.parameters)


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Equal attention layers.

    Attributes:
        layers: how many.
        heads: query heads.
        key_dim, value_dim: widths of one head's key and value as they are multiplied with queries and weights.
        kv_heads: heads that a device can hold a share of; 1 where all devices hold the same (a latent).
        stored: elements that one position takes in the KV cache of one layer.
        window: a position sees so many, itself included; None for all before it.
        latent: width of the latent from which keys and values are made (multi-head latent attention), else 0.
    """

    layers: int
    heads: int
    key_dim: int
    value_dim: int
    kv_heads: int
    stored: int
    window: int | None = None
    latent: int = 0

    @property
    def flops_per_pair(self) -> float:
        """Operations of one query with one key and its value, keys and values as they are."""
        return 2.0 * self.layers * self.heads * (self.key_dim + self.value_dim)

    @property
    def absorbed_flops_per_pair(self) -> float:
        """The same where queries are brought into the latent instead (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""
        return 2.0 * self.layers * self.heads * (self.stored + self.latent) if self.latent else self.flops_per_pair

    @property
    def expansion_flops(self) -> float:
        """Operations that make keys and values of one position from its latent."""
        if not self.latent:
            return 0.0
        without_position = self.key_dim - (self.stored - self.latent)
        return 2.0 * self.layers * self.latent * self.heads * (without_position + self.value_dim)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a model asks of a machine.

    Attributes:
        family: config.json's model_type.
        vectors: weights that are no matrix: norms and biases.
        positions: weights of a table of learned positions, of which a token reads a row.
        attention: the attention layers, equal ones together.
        tied: whether the head is the embedding, which then is listed once, as `head`.
        dtype: element type of the checkpoint, of what it was quantised to if it was.
        known: False where the family is not known and was read as if it were Llama's: the counts may be off.
    """

    family: str
    hidden: int
    layers: int
    vocab: int
    matrices: tuple[Matrix, ...]
    vectors: int
    attention: tuple[AttentionShape, ...]
    tied: bool
    max_context: int
    dtype: str
    positions: int = 0
    known: bool = True

    @property
    def parameters(self) -> int:
        """All weights."""
        return sum(matrix.parameters for matrix in self.matrices) + self.vectors + self.positions

    @property
    def active_parameters(self) -> float:
        """Weights that one token is multiplied with, the head included."""
        return sum(matrix.active for matrix in self.matrices if matrix.name != "embedding")

    @property
    def head_parameters(self) -> int:
        """Weights of the matrix that makes logits."""
        return sum(matrix.parameters for matrix in self.matrices if matrix.name == "head")

    @property
    def caveat(self) -> str | None:
        """What to know of the counts before they are believed; None where the family is known."""
        if self.known:
            return None
        return f"{self.family} is no family that is known here: it was read as if built like Llama, so all may be off"

    @property
    def kv_elements(self) -> int:
        """Elements of keys and values of one position, over all layers."""
        return sum(group.layers * group.stored for group in self.attention)

    @property
    def flops_per_token(self) -> float:
        """Operations of one position in the matrices of the layers."""
        return 2.0 * (self.active_parameters - self.head_parameters)

    @property
    def flops_per_row(self) -> float:
        """Operations of one row of logits."""
        return 2.0 * self.head_parameters

    @property
    def flops_per_pair(self) -> float:
        """Operations of one (query, key) pair, over all layers; windows not considered."""
        return sum(group.flops_per_pair for group in self.attention)

    @property
    def experts(self) -> int:
        """Experts of a layer; 0 for a dense model."""
        return max((matrix.experts for matrix in self.matrices), default=0)

    @property
    def moe_layers(self) -> int:
        """Layers with experts."""
        return sum(matrix.count for matrix in self.matrices if matrix.name == "router")

    def weight_bytes(self, dtype: str) -> float:
        """Bytes of all weights; vectors and tables of positions stay in 16 bits at least."""
        other = self.vectors + self.positions
        return (self.parameters - other) * BYTES[dtype] + other * max(2.0, BYTES[dtype])

    def kv_bytes_per_token(self, dtype: str) -> float:
        """Bytes of keys and values of one position."""
        return self.kv_elements * BYTES[dtype]

    def streamed_parameters(self, tokens: int) -> float:
        """Weights of the layers that a step over so many positions reads: of experts, those it is expected to meet.

        With `chosen` of `experts` drawn alike and independently for each position, an expert is met with probability
        1 - (1 - chosen/experts)^tokens. Real routing is less even, so fewer are met.
        """
        return sum(
            matrix.parameters * (1.0 - (1.0 - matrix.chosen / matrix.experts) ** tokens if matrix.experts else 1.0)
            for matrix in self.matrices
            if matrix.name not in ("embedding", "head")
        )


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """The shape that the contents of a config.json describe.

    Raises ArmillaryError: UNSUPPORTED_MODEL where a number that every model has is missing or is none, and where the
        numbers make no model.
    """
    try:
        shape = _read(config)
        least = min(min(matrix.rows, matrix.columns, matrix.count) for matrix in shape.matrices)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ArmillaryError(
            Code.UNSUPPORTED_MODEL, f"config.json must hold numbers where a model has some, but: {error}", "model"
        ) from error
    if least < 1 or shape.kv_elements < 1:
        raise ArmillaryError(
            Code.UNSUPPORTED_MODEL,
            "config.json must describe matrices of at least one row and column, and attention that keeps keys and "
            f"values, given {least} as the least and {shape.kv_elements} elements kept of a token",
            "model",
        )
    return shape


def _read(config: Mapping[str, Any]) -> ModelShape:
    from armillary.models.config import spec_from_config
    from armillary.twin.foreign import read_foreign

    stored = stored_dtype(config)
    inner = config.get("text_config")
    if isinstance(inner, Mapping) and "hidden_size" in inner:
        # Of a model that also sees or hears, the part that generates; some say the element type of the whole only.
        whole = {} if _DTYPE & inner.keys() else {name: config[name] for name in _DTYPE & config.keys()}
        config = {**whole, **inner}
        stored = stored or stored_dtype(config)
    for name in ("num_hidden_layers", "n_layer", "n_layers"):
        if isinstance(layers := config.get(name), int) and layers > MOST_LAYERS:
            raise ArmillaryError(
                Code.UNSUPPORTED_MODEL, f"config.json: `{name}` must be at most {MOST_LAYERS}, given {layers}", name
            )
    try:
        # How weights are packed is nothing to their counts.
        shape = shape_of(spec_from_config({k: v for k, v in config.items() if k not in QUANTISED}))
    except ArmillaryError as error:
        if error.code is not Code.UNSUPPORTED_MODEL:
            raise
        shape = read_foreign(config)
    return shape if stored is None else replace(shape, dtype=stored)


def shape_of(spec: ModelSpec) -> ModelShape:
    """The shape of a model that is computed here."""
    hidden = spec.hidden_size
    found: dict[tuple[str, int, int, int, int], int] = {}
    vectors = hidden
    groups: dict[AttentionShape, int] = {}

    def add(name: str, rows: int, columns: int, times: int = 1, experts: int = 0, chosen: int = 0) -> None:
        key = (name, rows, columns, experts, chosen)
        found[key] = found.get(key, 0) + times

    for layer in spec.layers:
        attention, mlp = layer.attention, layer.mlp
        q, kv = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
        add("q", q, hidden)
        add("kv", 2 * kv, hidden)
        add("out", hidden, q)
        if mlp.experts:
            add("router", mlp.experts, hidden)
            for name, rows, columns in _mlp("expert_", hidden, mlp.intermediate):
                add(name, rows, columns, mlp.experts, mlp.experts, mlp.experts_per_token)
        else:
            for name, rows, columns in _mlp("", hidden, mlp.intermediate):
                add(name, rows, columns)
        vectors += _layer_vectors(spec, layer)
        group = AttentionShape(
            0, attention.heads, attention.head_dim, attention.head_dim, attention.kv_heads, 2 * kv, attention.window
        )
        groups[group] = groups.get(group, 0) + 1
    add("head", spec.vocab_size, hidden)
    if not spec.tied:
        add("embedding", spec.vocab_size, hidden)
    return ModelShape(
        family=spec.family,
        hidden=hidden,
        layers=spec.num_layers,
        vocab=spec.vocab_size,
        matrices=tuple(Matrix(name, r, c, count, e, k) for (name, r, c, e, k), count in found.items()),
        vectors=vectors,
        attention=tuple(_counted(group, count) for group, count in groups.items()),
        tied=spec.tied,
        max_context=spec.max_context,
        dtype=spec.dtype,
    )


def _layer_vectors(spec: ModelSpec, layer: LayerSpec) -> int:
    """Norms and biases of one layer: what the layer has beside its matrices."""
    attention, mlp, hidden = layer.attention, layer.mlp, spec.hidden_size
    q, kv = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    norms = hidden * (4 if spec.norms == "sandwich" else 2)
    heads = {"none": 0, "head": 2 * attention.head_dim, "full": q + kv}[attention.qk_norm]
    biases = (q + 2 * kv) * attention.qkv_bias + hidden * attention.out_bias
    return norms + heads + biases + (2 * mlp.intermediate + hidden) * mlp.bias * max(1, mlp.experts)


def _mlp(prefix: str, hidden: int, width: int) -> list[tuple[str, int, int]]:
    return [
        (f"{prefix}gate", width, hidden),
        (f"{prefix}up", width, hidden),
        (f"{prefix}down", hidden, width),
    ]


def _counted(group: AttentionShape, layers: int) -> AttentionShape:
    return AttentionShape(
        layers, group.heads, group.key_dim, group.value_dim, group.kv_heads, group.stored, group.window, group.latent
    )
