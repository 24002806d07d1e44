"""The rotary frequencies of a model, as the native kernels take them.

torch computes them (`armillary.models.rope`), to the bit as the models were trained; what it found is kept beside
packed weights, so that who has those need not load it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from armillary.models.spec import ModelSpec

Rotation = tuple[npt.NDArray[np.float32], float]
"""Inverse frequencies [dim / 2], and the factor on cosine and sine."""
_BY_CONTEXT = ("dynamic", "longrope")
"""Kinds of rotary embedding whose frequencies depend on how long sequences become."""


def rotations(spec: ModelSpec) -> list[Rotation]:
    """One for each of `spec.ropes`, for sequences of up to `spec.max_context` tokens. Loads torch."""
    from armillary.models.rope import frequencies

    found = [frequencies(rope, spec.max_context) for rope in spec.ropes]
    return [(inverse.float().contiguous().numpy(), factor) for inverse, factor in found]


def to_json(spec: ModelSpec, found: list[Rotation]) -> list[Any]:
    """Rotations of this model with all that they depend on."""
    return [_inputs(spec), [[inverse.tolist(), factor] for inverse, factor in found]]


def from_json(spec: ModelSpec, value: Any) -> list[Rotation] | None:
    """What `to_json` made, to the bit; None where it was made of another model or for another context."""
    inputs, found = value
    if inputs != _inputs(spec):
        return None
    return [(np.array(inverse, dtype=np.float32), float(factor)) for inverse, factor in found]


def _inputs(spec: ModelSpec) -> str:
    found = [
        [rope.kind, rope.theta, rope.dim, rope.trained_context, dict(rope.parameters),
         max(spec.max_context, rope.trained_context) if rope.kind in _BY_CONTEXT else None]
        for rope in spec.ropes
    ]  # fmt: skip
    return json.dumps(found, sort_keys=True)
