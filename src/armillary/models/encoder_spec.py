"""An encoder described as data: a text read from both sides at once, for vectors and scores, not for more text.

Nothing here depends on torch, so that a plan can be made before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from armillary.models.spec import Activation


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """The whole encoder.

    Attributes:
        family: config.json's model_type.
        activation: between the two products of a feed-forward layer.
        positions: rows of the table of positions.
        padding_id: tokens with this id take this row of the table of positions, and the others count on from
            the row after it; None where positions simply count from 0.
        types: rows of the table that tells the first text of a pair from the second; 0 for no such table.
        scores: whether a head turns the first token into one score (a cross-encoder).
        head_activation: between the two products of that head.
        max_context: tokens of one text, or of one pair, at most.
        dtype: element type of the checkpoint: float32, bfloat16 or float16.
        config: config.json as found.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    heads: int
    intermediate: int
    activation: Activation
    norm_eps: float
    positions: int
    padding_id: int | None
    types: int
    scores: bool
    head_activation: str
    max_context: int
    dtype: str = "float32"
    sampling_defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), compare=False)
    config: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), compare=False, repr=False)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.heads

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """An encoder keeps nothing of a token between steps."""
        return 0

    def layer_parameters(self) -> int:
        """Weights in one layer."""
        hidden, inner = self.hidden_size, self.intermediate
        return 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden

    def num_parameters(self) -> int:
        """Weights in the whole encoder, its head included."""
        hidden = self.hidden_size
        tables = (self.vocab_size + self.positions + self.types + 2) * hidden
        head = hidden * hidden + hidden + hidden + 1 if self.scores else 0
        return tables + self.num_layers * self.layer_parameters() + head

    def with_context(self, max_context: int) -> EncoderSpec:
        """The same model for texts of at most `max_context` tokens."""
        return replace(self, max_context=max_context)
