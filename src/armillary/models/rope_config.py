"""Reading a config's rotary embedding, in the spellings of both its eras."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from armillary.models.families import Family
from armillary.models.spec import RopeSpec

if TYPE_CHECKING:
    from armillary.models.config import Fields

_LAYER_TYPES = ("full_attention", "sliding_attention")
_ALWAYS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"})
PARAMETERS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset({"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}),
    "longrope": frozenset({"factor", "attention_factor", "short_factor", "long_factor"}),
}
"""What each rotary scaling is parametrised by; anything else in its object is refused."""
_REQUIRED: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}


def read_ropes(family: Family, values: Fields, layers: int, head_dim: int) -> tuple[tuple[RopeSpec, ...], list[int]]:
    """The model's rotary embeddings, and for each layer the index of its own."""
    from armillary.models.config import layer_types, refuse

    scaling, parameters = values.raw("rope_scaling"), values.raw("rope_parameters")
    for name, value in (("rope_scaling", scaling), ("rope_parameters", parameters)):
        if value is not None and not isinstance(value, Mapping):
            refuse(f"`{name}` must be an object, given {value!r}", name)
    if "rope_local_base_freq" not in family.defaults:
        nested = [key for key in parameters or {} if key in _LAYER_TYPES]
        if nested:
            refuse(f"`rope_parameters` must be flat for {family.model_type}, given an entry {nested[0]!r}")
        merged = {**(parameters or {}), **(scaling or {})}
        return (_rope(family, values, merged, values.raw("rope_theta"), head_dim),), [0] * layers
    # Two rotary embeddings: global layers carry the scaling, local layers have a base of their own.
    given = parameters or {}
    if given and not any(key in _LAYER_TYPES for key in given):
        refuse(f"`rope_parameters` must have entries {' and '.join(_LAYER_TYPES)}, given {sorted(given)}")
    unknown = [key for key in given if key not in _LAYER_TYPES]
    if unknown:
        refuse(f"`rope_parameters` must have entries {' and '.join(_LAYER_TYPES)} only, given {unknown[0]!r}")
    whole = {**(given.get("full_attention") or {}), **(scaling or {})}
    local = given.get("sliding_attention") or {}
    ropes = (
        _rope(family, values, whole, values.raw("rope_theta"), head_dim),
        _rope(family, values, local, values.raw("rope_local_base_freq"), head_dim),
    )
    return ropes, [0 if kind == "full_attention" else 1 for kind in layer_types(family, values, layers)]


def _rope(family: Family, values: Fields, given: Mapping[str, Any], theta: Any, head_dim: int) -> RopeSpec:
    from armillary.models.config import refuse

    kind = given.get("rope_type") or given.get("type") or "default"
    if family.model_type == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"  # the names that early Phi-3 checkpoints gave it
    if kind not in family.ropes:
        known = ", ".join(sorted(family.ropes))
        refuse(f"`rope_type` must be one of {known} for {family.model_type}, given {kind!r}", "rope_type")
    for name, value in given.items():
        if value is not None and name not in _ALWAYS | PARAMETERS[kind]:
            refuse(f"`{name}` is not a parameter known for rope type {kind}, given {value!r}", name)
    for name in _REQUIRED.get(kind, ()):
        if given.get(name) is None:
            refuse(f"`{name}` must be given for rope type {kind}, and is not", name)
    partial = given.get("partial_rotary_factor") or values.raw("partial_rotary_factor") or 1.0
    if partial != 1.0 and not family.partial_rotary:
        refuse(f"`partial_rotary_factor` must be 1 for {family.model_type}, given {partial}", "partial_rotary_factor")
    dim = int(head_dim * float(partial))
    context = values.count("max_position_embeddings")
    trained = context
    if kind in ("llama3", "yarn", "longrope"):
        outer, inner = values.raw("original_max_position_embeddings"), given.get("original_max_position_embeddings")
        trained = int(outer or inner or context)
    parameters = {name: given[name] for name in PARAMETERS[kind] if given.get(name) is not None}
    if kind in ("yarn", "longrope"):
        parameters.setdefault("factor", context / trained)
    for name in ("short_factor", "long_factor"):
        if kind == "longrope" and (not isinstance(given[name], list) or len(given[name]) != dim // 2):
            refuse(f"`{name}` must list {dim // 2} numbers, given {given[name]!r}", name)
    chosen = given.get("rope_theta")
    return RopeSpec(kind, float(theta if chosen is None else chosen), dim, trained, parameters)
