"""Reading config.json and generation_config.json into a `ModelSpec`.

Both spellings of today are read: `rope_theta` and `rope_scaling`, or `rope_parameters`; `torch_dtype`, or
`dtype`. A field that would change the maths and is not understood is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, Protocol, TypeVar

from armillary.errors import ArmillaryError, Code
from armillary.models.families import FAMILIES, FIXED, HARMLESS, Family
from armillary.models.quantized_config import read_quantized
from armillary.models.rope_config import read_ropes
from armillary.models.spec import Activation, AttentionSpec, LayerSpec, MlpSpec, ModelSpec

SAMPLING_FIELDS = (
    "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "max_length",
)  # fmt: skip
"""Fields of generation_config.json that become sampling defaults."""

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
_DTYPES = ("float32", "bfloat16", "float16")
_T = TypeVar("_T")


def read_config(folder: Path) -> ModelSpec:
    """The spec of the model in `folder`.

    Raises ArmillaryError: INVALID_CHECKPOINT if the folder has no readable config.json, UNSUPPORTED_MODEL for a
    family or field that is not supported.
    """
    config = read_json(folder / "config.json")
    if config is None:
        raise ArmillaryError(
            Code.INVALID_CHECKPOINT,
            f"the model folder must contain config.json, given {folder}, which does not",
            "model",
        )
    return spec_from_config(config, read_json(folder / "generation_config.json"))


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None if there is no such file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArmillaryError(Code.INVALID_CHECKPOINT, f"{path} must be JSON, given {error}", "model") from error
    if not isinstance(value, dict):
        found = type(value).__name__
        raise ArmillaryError(Code.INVALID_CHECKPOINT, f"{path} must hold an object, given {found}", "model")
    return value


def spec_from_config(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelSpec:
    """The spec that the contents of config.json (and generation_config.json) describe."""
    family, original = _family(config), config
    quantized = read_quantized(config.get("quantization_config"))
    config = {family.aliases.get(k, k): value for k, value in config.items() if k != "quantization_config"}
    check_fields(family, config)
    values = Fields(family, config)
    hidden, heads = values.count("hidden_size"), values.count("num_attention_heads")
    head_dim = values.optional("head_dim", int) or hidden // heads
    kv_heads = values.optional("num_key_value_heads", int) or heads
    if heads % kv_heads:
        refuse(f"num_attention_heads must be a multiple of num_key_value_heads, given {heads} and {kv_heads}")
    layers, context = values.count("num_hidden_layers"), values.count("max_position_embeddings")
    scalar = values.optional("query_pre_attn_scalar", float) or float(head_dim)
    attention = AttentionSpec(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=scalar**-0.5,
        softcap=values.optional("attn_logit_softcapping", float),
        qk_norm=family.qk_norm,
        qkv_bias=values.flag(family.qkv_bias),
        out_bias=values.flag(family.out_bias),
    )
    windows = _windows(family, values, layers)
    ropes, rope_of = read_ropes(family, values, layers, head_dim)
    mlps = _mlps(family, values, layers)
    trained = [rope.trained_context * rope.parameters["factor"] for rope in ropes if rope.kind == "yarn"]
    generation = generation or {}
    eos = generation.get("eos_token_id")
    return ModelSpec(
        family=family.model_type,
        vocab_size=values.count("vocab_size"),
        hidden_size=hidden,
        layers=tuple(LayerSpec(replace(attention, window=windows[i]), mlps[i], rope_of[i]) for i in range(layers)),
        ropes=ropes,
        norm_eps=values.required("rms_norm_eps", float),
        max_context=max([context, *(int(length) for length in trained)]),
        norms=family.norms,
        norm_offset=family.norm_offset,
        embedding_scale=hidden**0.5 if family.scaled_embedding else 1.0,
        logit_softcap=values.optional("final_logit_softcapping", float),
        tied=values.flag("tie_word_embeddings"),
        eos_token_ids=_ids(config.get("eos_token_id") if eos is None else eos),
        bos_token_id=_first(generation.get("bos_token_id", config.get("bos_token_id"))),
        pad_token_id=_first(generation.get("pad_token_id", config.get("pad_token_id"))),
        dtype=element_type(config),
        sampling_defaults=MappingProxyType(
            {name: generation[name] for name in SAMPLING_FIELDS if generation.get(name) is not None}
        ),
        config=MappingProxyType(dict(original)),
        quantized=quantized,
    )


def refuse(message: str, param: str | None = None) -> NoReturn:
    """Raise UNSUPPORTED_MODEL for config.json."""
    raise ArmillaryError(Code.UNSUPPORTED_MODEL, f"config.json: {message}", param)


class Readable(Protocol):
    """What a family says about the fields of its config.json."""

    @property
    def model_type(self) -> str: ...
    @property
    def defaults(self) -> Mapping[str, Any]: ...
    @property
    def fixed(self) -> Mapping[str, tuple[Any, ...]]: ...


class Fields:
    """A config's values over its family's defaults, checked for type as they are read."""

    def __init__(self, family: Readable, config: Mapping[str, Any]) -> None:
        self._values = {**family.defaults, **{k: v for k, v in config.items() if k in family.defaults}}
        self.config = config

    def raw(self, name: str) -> Any:
        """The value as found, or the family's default; None for a field the family does not have."""
        return self._values.get(name)

    def optional(self, name: str, kind: type[_T]) -> _T | None:
        """The value as `kind`, or None."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
            refuse(f"`{name}` must be of type {kind.__name__}, given {value!r}", name)
        return kind(value)  # type: ignore[call-arg]

    def required(self, name: str, kind: type[_T]) -> _T:
        """The value as `kind`; refused where it is missing."""
        value = self.optional(name, kind)
        if value is None:
            refuse(f"`{name}` must be given, and is not", name)
        return value

    def count(self, name: str) -> int:
        """A positive integer."""
        value = self.required(name, int)
        if value < 1:
            refuse(f"`{name}` must be at least 1, given {value}", name)
        return value

    def flag(self, source: bool | str) -> bool:
        """A constant, or the boolean field of that name (null is false)."""
        return source if isinstance(source, bool) else bool(self.optional(source, bool))


def check_fields(family: Readable, config: Mapping[str, Any], harmless: frozenset[str] = HARMLESS) -> None:
    """Refuse the first field that is neither read nor known to be harmless."""
    fixed = {**FIXED, **family.fixed}
    for name, value in config.items():
        if value is None or name in family.defaults or name.startswith("_"):
            continue
        if name in fixed:
            if not any(value == allowed and type(value) is type(allowed) for allowed in fixed[name]):
                allowed = " or ".join(["absent", *(json.dumps(v) for v in fixed[name])])
                refuse(f"`{name}` must be {allowed} for {family.model_type}, given {json.dumps(value)}", name)
        elif name not in harmless:
            refuse(
                f"`{name}` is not a field known for {family.model_type}, given {json.dumps(value)}, so the model "
                "might compute something else than it says",
                name,
            )


def _family(config: Mapping[str, Any]) -> Family:
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        refuse(f"`model_type` must be one of {known}, given {name!r}", "model_type")
    # Without its head, a model gives vectors, and words too where the head is the embedding.
    headless = "".join(word.capitalize() for word in name.split("_")) + "Model"
    heads = [a for a in config.get("architectures") or [] if not str(a).endswith("ForCausalLM") and a != headless]
    if heads:
        refuse(f"`architectures` must name a ...ForCausalLM or {headless}, given {heads[0]!r}", "architectures")
    return FAMILIES[name]


def _windows(family: Family, values: Fields, layers: int) -> list[int | None]:
    window = values.optional("sliding_window", int)
    kinds = layer_types(family, values, layers) if family.windows in ("flagged_layers", "layers") else []
    if family.windows in ("flag", "flagged_layers") and not values.flag("use_sliding_window"):
        window = None
    if family.windows == "none" or window is None:
        return [None] * layers
    if family.windows in ("all", "flag"):
        return [window] * layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def layer_types(family: Family, values: Fields, layers: int) -> list[str]:
    """`layer_types`, or what the family derives where it is missing."""
    given = values.raw("layer_types")
    if given is None:
        if family.windows == "layers":
            every = values.count("sliding_window_pattern")
            return ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(layers)]
        first = values.count("max_window_layers") if values.raw("max_window_layers") else 0
        return ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    if not isinstance(given, list) or len(given) != layers:
        refuse(f"`layer_types` must list {layers} layers, given {given!r}", "layer_types")
    for kind in given:
        if kind not in ("sliding_attention", "full_attention"):
            refuse(f"`layer_types` must be sliding_attention or full_attention, given {kind!r}", "layer_types")
    return [str(kind) for kind in given]


def _mlps(family: Family, values: Fields, layers: int) -> list[MlpSpec]:
    name = values.raw(family.activation_field)
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        refuse(f"`{family.activation_field}` must be one of {known}, given {name!r}", family.activation_field)
    activation, width = ACTIVATIONS[name], values.count("intermediate_size")
    dense = MlpSpec(width, activation, values.flag(family.mlp_bias))
    if not family.experts_field:
        return [dense] * layers
    experts, chosen = values.count(family.experts_field), values.count("num_experts_per_tok")
    if chosen > experts:
        refuse(f"`num_experts_per_tok` must be at most the {experts} experts, given {chosen}", "num_experts_per_tok")
    sparse = MlpSpec(
        values.count(family.expert_width_field),
        activation,
        experts=experts,
        experts_per_token=chosen,
        renormalize=values.flag("norm_topk_prob") if values.raw("norm_topk_prob") is not None else True,
    )
    step = values.optional("decoder_sparse_step", int) or 1
    plain = values.raw("mlp_only_layers") or ()
    return [sparse if i not in plain and (i + 1) % step == 0 else dense for i in range(layers)]


def element_type(config: Mapping[str, Any]) -> str:
    """The element type that config.json names, float32 where it names none."""
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    name = str(name).removeprefix("torch.")
    if name not in _DTYPES:
        refuse(f"`dtype` must be one of {', '.join(_DTYPES)}, given {name!r}", "dtype")
    return name


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(item) for item in (value if isinstance(value, list) else [value]))


def _first(value: Any) -> int | None:
    ids = _ids(value)
    return ids[0] if ids else None
