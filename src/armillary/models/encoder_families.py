"""Every encoder family that is read, as data: what its config.json means, and what it calls its weights.

The counterpart of `armillary.models.families` for models that read a text from both sides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from armillary.models.families import HARMLESS


@dataclass(frozen=True, slots=True)
class EncoderFamily:
    """How one model_type is read.

    Attributes:
        classes: what the names of its classes begin with, as `architectures` has them.
        prefix: what stands before a tensor's name where the checkpoint holds a model with a head.
        defaults: every field that is read, with its value where config.json leaves it out.
        fixed: fields that would change the maths, with the values that do not. Any other value is refused.
        fields: our word -> its field, where the two differ.
        padded_positions: whether positions count on from the padding token's row.
        norm_eps: the value for a family whose config has no such field.
        layers: what stands before the number of a layer in its tensors' names.
        tables: parameters outside the layers -> their tensor.
        layer: per-layer parameter -> its tensors, stacked in this order.
        head: parameters of the head that scores -> their tensor.
        head_activation: between the two products of that head.
    """

    model_type: str
    title: str
    classes: str
    prefix: str
    defaults: Mapping[str, Any]
    layers: str
    tables: Mapping[str, str]
    layer: Mapping[str, tuple[str, ...]]
    head: Mapping[str, str]
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    padded_positions: bool = False
    norm_eps: float | None = None
    head_activation: str = "tanh"


_FIXED: dict[str, tuple[Any, ...]] = {
    "is_decoder": (False,),
    "position_embedding_type": ("absolute",),
    "pruned_heads": ({}, []),
}
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
_TABLES = {
    "embed": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "types": "embeddings.token_type_embeddings.weight",
    "embed_norm": "embeddings.LayerNorm.weight",
    "embed_norm_bias": "embeddings.LayerNorm.bias",
}
_LAYER: dict[str, tuple[str, ...]] = {
    "qkv": ("attention.self.query.weight", "attention.self.key.weight", "attention.self.value.weight"),
    "qkv_bias": ("attention.self.query.bias", "attention.self.key.bias", "attention.self.value.bias"),
    "out": ("attention.output.dense.weight",),
    "out_bias": ("attention.output.dense.bias",),
    "attention_norm": ("attention.output.LayerNorm.weight",),
    "attention_norm_bias": ("attention.output.LayerNorm.bias",),
    "up": ("intermediate.dense.weight",),
    "up_bias": ("intermediate.dense.bias",),
    "down": ("output.dense.weight",),
    "down_bias": ("output.dense.bias",),
    "mlp_norm": ("output.LayerNorm.weight",),
    "mlp_norm_bias": ("output.LayerNorm.bias",),
}
_ROBERTA: dict[str, Any] = {
    "prefix": "roberta",
    "defaults": {**_DEFAULTS, "vocab_size": 50265, "pad_token_id": 1},
    "fixed": _FIXED,
    "layers": "encoder.layer",
    "tables": _TABLES,
    "layer": _LAYER,
    "head": {
        "dense": "classifier.dense.weight",
        "dense_bias": "classifier.dense.bias",
        "score": "classifier.out_proj.weight",
        "score_bias": "classifier.out_proj.bias",
    },
    "padded_positions": True,
}

_ALL = (
    EncoderFamily(
        model_type="bert",
        title="BERT, and the sentence encoders made from it (MiniLM, BGE, E5, GTE)",
        classes="Bert",
        prefix="bert",
        defaults=_DEFAULTS,
        fixed=_FIXED,
        layers="encoder.layer",
        tables=_TABLES,
        layer=_LAYER,
        head={
            "dense": "pooler.dense.weight",
            "dense_bias": "pooler.dense.bias",
            "score": "classifier.weight",
            "score_bias": "classifier.bias",
        },
    ),
    EncoderFamily(model_type="roberta", title="RoBERTa", classes="Roberta", **_ROBERTA),
    EncoderFamily(
        model_type="xlm-roberta",
        title="XLM-RoBERTa (BGE-M3, multilingual E5, BGE rerankers)",
        classes="XLMRoberta",
        **{**_ROBERTA, "defaults": {**_ROBERTA["defaults"], "vocab_size": 30522}},
    ),
    EncoderFamily(
        model_type="camembert",
        title="CamemBERT",
        classes="Camembert",
        **{**_ROBERTA, "defaults": {**_ROBERTA["defaults"], "vocab_size": 30522}},
    ),
    EncoderFamily(
        model_type="distilbert",
        title="DistilBERT",
        classes="DistilBert",
        prefix="distilbert",
        defaults={
            "vocab_size": 30522,
            "dim": 768,
            "n_layers": 6,
            "n_heads": 12,
            "hidden_dim": 3072,
            "activation": "gelu",
            "max_position_embeddings": 512,
        },
        fixed=_FIXED,
        fields={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        },
        norm_eps=1e-12,
        layers="transformer.layer",
        tables={parameter: tensor for parameter, tensor in _TABLES.items() if parameter != "types"},
        layer={
            "qkv": ("attention.q_lin.weight", "attention.k_lin.weight", "attention.v_lin.weight"),
            "qkv_bias": ("attention.q_lin.bias", "attention.k_lin.bias", "attention.v_lin.bias"),
            "out": ("attention.out_lin.weight",),
            "out_bias": ("attention.out_lin.bias",),
            "attention_norm": ("sa_layer_norm.weight",),
            "attention_norm_bias": ("sa_layer_norm.bias",),
            "up": ("ffn.lin1.weight",),
            "up_bias": ("ffn.lin1.bias",),
            "down": ("ffn.lin2.weight",),
            "down_bias": ("ffn.lin2.bias",),
            "mlp_norm": ("output_layer_norm.weight",),
            "mlp_norm_bias": ("output_layer_norm.bias",),
        },
        head={
            "dense": "pre_classifier.weight",
            "dense_bias": "pre_classifier.bias",
            "score": "classifier.weight",
            "score_bias": "classifier.bias",
        },
        head_activation="relu",
    ),
)

ENCODERS: dict[str, EncoderFamily] = {family.model_type: family for family in _ALL}

HEADLESS = ("Model", "ForMaskedLM", "ForPreTraining")
"""Endings of architectures whose vectors are wanted; a head that they have is not read."""
SCORING = "ForSequenceClassification"
"""The ending of architectures that score."""

UNREAD = re.compile(
    r"(cls|lm_head|vocab_transform|vocab_layer_norm|vocab_projector)\.|pooler\.dense\.|"
    r"embeddings\.(position_ids|token_type_ids)$"
)
"""Tensors that nothing here computes with: heads for words, the unused pooler, tables of plain counting."""

ENCODER_HARMLESS = HARMLESS | frozenset(
    """
    attention_probs_dropout_prob hidden_dropout_prob classifier_dropout dropout qa_dropout seq_classif_dropout
    sinusoidal_pos_embs sinusoidal_pos_embds tie_weights_ tie_word_embeddings directionality output_past pooler_fc_size
    pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type num_labels
    sentence_transformers sbert_ce_default_activation_function sbert_ce_default_activation_fn
    matryoshka_dimensions pad_token_id is_matryoshka
    """.split()
)
"""Fields of config.json that cannot change a hidden state here: training, heads, bookkeeping."""
