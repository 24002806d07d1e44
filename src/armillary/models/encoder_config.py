"""Reading an encoder's config.json into an `EncoderSpec`; and telling encoders from decoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from armillary.errors import ArmillaryError, Code
from armillary.models.config import ACTIVATIONS, Fields, check_fields, element_type, read_config, read_json, refuse
from armillary.models.encoder_families import ENCODER_HARMLESS, ENCODERS, HEADLESS, SCORING, EncoderFamily
from armillary.models.encoder_spec import EncoderSpec
from armillary.models.pooling import trained_length
from armillary.models.spec import ModelSpec


def read_model(folder: Path) -> ModelSpec | EncoderSpec:
    """The spec of the model in `folder`, whichever kind it is.

    Raises:
        ArmillaryError: INVALID_CHECKPOINT where there is no readable config.json, UNSUPPORTED_MODEL for a family
            or field that is not supported.
    """
    config = read_json(folder / "config.json") or {}
    if config.get("model_type") in ENCODERS:
        spec, trained = encoder_from_config(config), trained_length(folder)
        return spec if trained is None else spec.with_context(min(trained, spec.max_context))
    try:
        return read_config(folder)
    except ArmillaryError as error:
        if error.code is Code.UNSUPPORTED_MODEL and error.param == "model_type":
            message = f"{error.message}; or, for vectors and scores, one of {', '.join(sorted(ENCODERS))}"
            raise ArmillaryError(error.code, message, error.param) from None
        raise


def encoder_from_config(config: Mapping[str, Any]) -> EncoderSpec:
    """The spec that the contents of an encoder's config.json describe.

    Raises:
        ArmillaryError: UNSUPPORTED_MODEL, naming the field.
    """
    family = ENCODERS[str(config["model_type"])]
    check_fields(family, config, ENCODER_HARMLESS)
    values = Fields(family, config)

    def named(word: str) -> str:
        return family.fields.get(word, word)

    hidden, heads = values.count(named("hidden_size")), values.count(named("num_attention_heads"))
    if hidden % heads:
        refuse(f"`{named('hidden_size')}` must be a multiple of `{named('num_attention_heads')}`, given {hidden} and "
               f"{heads}", named("hidden_size"))  # fmt: skip
    activation = values.raw(named("hidden_act"))
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        refuse(f"`{named('hidden_act')}` must be one of {known}, given {activation!r}", named("hidden_act"))
    positions, padding = values.count("max_position_embeddings"), None
    if family.padded_positions:
        padding = values.required("pad_token_id", int)
        if not 0 <= padding < positions - 1:
            refuse(f"`pad_token_id` must leave room in {positions} positions, given {padding}", "pad_token_id")
    return EncoderSpec(
        family=family.model_type,
        vocab_size=values.count("vocab_size"),
        hidden_size=hidden,
        num_layers=values.count(named("num_hidden_layers")),
        heads=heads,
        intermediate=values.count(named("intermediate_size")),
        activation=ACTIVATIONS[activation],
        norm_eps=family.norm_eps or values.required("layer_norm_eps", float),
        positions=positions,
        padding_id=padding,
        types=values.count("type_vocab_size") if "types" in family.tables else 0,
        scores=_scores(family, config),
        head_activation=family.head_activation,
        max_context=positions if padding is None else positions - padding - 1,
        dtype=element_type(config),
        config=MappingProxyType(dict(config)),
    )


def _scores(family: EncoderFamily, config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint has a head that scores; refused where its head does something else."""
    known = [family.classes + ending for ending in (*HEADLESS, SCORING)]
    architectures = config.get("architectures") or [known[0]]
    if len(architectures) != 1 or architectures[0] not in known:
        refuse(f"`architectures` must be one of {', '.join(known)}, given {architectures}", "architectures")
    if not architectures[0].endswith(SCORING):
        return False
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    if count != 1:
        refuse(
            f"`id2label` must have one label for {architectures[0]}, given {count}: one score ranks documents, and "
            "what else classes could mean is not known here",
            "id2label",
        )
    return True
