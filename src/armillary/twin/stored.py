"""What a checkpoint's weights are stored as, where config.json says that they were quantised.

Only the width matters here: what is read from memory and what has room beside it. Matrices that a method leaves as they
were (the head, the embedding) are counted as the others, so memory comes out a little too small.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

QUANTISED = ("quantization_config", "compression_config")
"""Fields of config.json that say how weights were quantised."""
_BITS = ("bits", "w_bit", "nbits", "num_bits", "weight_bits")
_FLOATS = ("fp8", "float8", "fbgemm_fp8")


def stored_dtype(config: Mapping[str, Any]) -> str | None:
    """The element type that a `quantization_config` names, the next wider one that is known here; None where there is
    none, or where it says nothing about widths."""
    said = next((config[name] for name in QUANTISED if config.get(name)), None)
    if not isinstance(said, Mapping):
        return None
    method = str(said.get("quant_method", "")).lower()
    algorithm = str(said.get("quant_algo", said.get("weights", ""))).lower()
    if "fp4" in method or "fp4" in algorithm or said.get("load_in_4bit"):
        return "int4"
    if method in _FLOATS or algorithm in _FLOATS:
        return "float8"
    if said.get("load_in_8bit"):
        return "int8"
    groups = said.get("config_groups")
    if isinstance(groups, Mapping) and groups:  # compressed-tensors: the first group speaks for all
        first = next(iter(groups.values()))
        weights = first.get("weights") if isinstance(first, Mapping) else None
        if isinstance(weights, Mapping):
            return _of_bits(weights, "float8" if weights.get("type") == "float" else "int8")
    return _of_bits(said, "int8")


def _of_bits(said: Mapping[str, Any], eight: str) -> str | None:
    bits = next((said[name] for name in _BITS if isinstance(said.get(name), int)), None)
    if bits is None or isinstance(bits, bool):
        return None
    return "int4" if bits <= 4 else eight if bits <= 8 else None
