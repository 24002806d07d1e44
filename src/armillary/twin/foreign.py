"""Shapes of models that are not computed here: latent attention, shared experts, plain feed-forward layers.

The rules are those of each family's reference implementation, as far as they decide how many weights there are and how
wide. A family without a rule is read as if it were Llama's, and the shape says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from armillary.errors import ArmillaryError, Code
from armillary.twin.shapes import AttentionShape, Matrix, ModelShape


@dataclass(frozen=True, slots=True)
class Rules:
    """How a family is built.

    Attributes:
        gated: whether the feed-forward layer has a gate beside its two matrices.
        norms: norms of a layer.
        norm_bias: whether norms have a bias.
        qkv_bias, out_bias, mlp_bias: whether these matrices have a bias, or the field that says so.
        tied: whether the head is the embedding where config.json does not say.
        learned: rows that a table of learned positions has beyond the context; None for no table.
        wide: the width of the feed-forward layer in widths of the model, where config.json does not say.
    """

    gated: bool = True
    norms: int = 2
    norm_bias: bool = False
    qkv_bias: bool | str = "attention_bias"
    out_bias: bool | str = "attention_bias"
    mlp_bias: bool | str = "mlp_bias"
    tied: bool = False
    learned: int | None = None
    wide: int = 4


_PLAIN = Rules(gated=False, norm_bias=True, qkv_bias=True, out_bias=True, mlp_bias=True, tied=True)
RULES = {
    "deepseek_v2": Rules(),
    "deepseek_v3": Rules(),
    "kimi_k2": Rules(),
    "qwen2_moe": Rules(qkv_bias=True, out_bias=False),
    "opt": Rules(gated=False, norm_bias=True, qkv_bias="enable_bias", out_bias="enable_bias", mlp_bias="enable_bias",
                 tied=True, learned=2),
    "gpt2": Rules(gated=False, norm_bias=True, qkv_bias=True, out_bias=True, mlp_bias=True, tied=True, learned=0),
    "gptj": Rules(gated=False, norms=1, norm_bias=True, qkv_bias=False, out_bias=False, mlp_bias=True),
    "gpt_neox": Rules(gated=False, norm_bias=True, qkv_bias=True, out_bias=True, mlp_bias=True),
    "falcon": Rules(gated=False, norm_bias=True, qkv_bias="bias", out_bias="bias", mlp_bias="bias", tied=True),
}  # fmt: skip
"""model_type -> how it is built."""

_ON = {"enable_bias"}
"""Fields that are true where config.json does not have them."""

_NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "vocab": ("vocab_size",),
    "context": ("max_position_embeddings", "n_positions", "max_sequence_length"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_dim": ("head_dim",),
    "width": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "experts": ("n_routed_experts", "num_local_experts", "num_experts"),
    "chosen": ("num_experts_per_tok", "num_experts_per_token", "moe_top_k"),
    "expert_width": ("moe_intermediate_size", "expert_ffn_hidden_size"),
}


def read_foreign(config: Mapping[str, Any]) -> ModelShape:
    """The shape of a model by the rules above.

    Raises ArmillaryError: UNSUPPORTED_MODEL where a number is missing or is none.
    """
    family = str(config.get("model_type", "unknown"))
    rules = RULES.get(family, Rules())
    hidden, layers, heads, vocab = (_count(config, name) for name in ("hidden", "layers", "heads", "vocab"))
    width = _optional(config, "width") or rules.wide * hidden
    vectors = hidden * (1 + rules.norm_bias)
    matrices: list[Matrix] = []
    attention, attention_matrices, layer_vectors = _attention(config, rules, hidden, layers, heads)
    matrices += attention_matrices
    vectors += layers * layer_vectors + layers * _norms(config, family, rules) * hidden * (1 + rules.norm_bias)
    sparse = _sparse_layers(config, layers)
    if dense := layers - sparse:
        matrices += _mlp("", hidden, width, dense, rules.gated)
        if _flag(config, rules.mlp_bias):
            vectors += dense * (width * (1 + rules.gated) + hidden)
    if sparse:
        matrices += _experts(config, hidden, width, sparse, rules)
    tied = bool(config.get("tie_word_embeddings", rules.tied))
    matrices.append(Matrix("head", vocab, hidden, 1))
    if not tied:
        matrices.append(Matrix("embedding", vocab, hidden, 1))
    if family == "gptj":
        vectors += vocab
    context = _optional(config, "context") or 2048
    return ModelShape(
        family=family,
        hidden=hidden,
        layers=layers,
        vocab=vocab,
        matrices=tuple(matrices),
        vectors=vectors,
        attention=attention,
        tied=tied,
        max_context=context,
        dtype=_dtype(config),
        positions=0 if rules.learned is None else (context + rules.learned) * hidden,
        known=family in RULES,
    )


def _attention(
    config: Mapping[str, Any], rules: Rules, hidden: int, layers: int, heads: int
) -> tuple[tuple[AttentionShape, ...], list[Matrix], int]:
    """The attention layers, their matrices, and the vectors of each beside its norms."""
    if config.get("kv_lora_rank"):
        return _latent(config, hidden, layers, heads)
    head_dim = _optional(config, "head_dim") or hidden // heads
    kv_heads = _optional(config, "kv_heads") or heads
    if config.get("model_type") == "falcon" and not config.get("new_decoder_architecture"):
        kv_heads = 1 if config.get("multi_query", True) else heads
    q, kv = heads * head_dim, kv_heads * head_dim
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    window = window if isinstance(window, int) and window > 0 else None
    shapes = tuple(
        AttentionShape(count, heads, head_dim, head_dim, kv_heads, 2 * kv, seen)
        for seen, count in _seen(config, layers, window).items()
        if count
    )
    matrices = [
        Matrix("q", q, hidden, layers),
        Matrix("kv", 2 * kv, hidden, layers),
        Matrix("out", hidden, q, layers),
    ]
    vectors = (q + 2 * kv) * _flag(config, rules.qkv_bias) + hidden * _flag(config, rules.out_bias)
    return shapes, matrices, vectors


def _seen(config: Mapping[str, Any], layers: int, window: int | None) -> dict[int | None, int]:
    """Window -> how many layers have it; layers that keep one state a sequence (no keys) are left out."""
    kinds, interval = config.get("layer_types"), config.get("full_attention_interval")
    if kinds is None and isinstance(interval, int) and interval > 0:
        return {None: layers // interval}
    if not isinstance(kinds, list) or len(kinds) != layers or (window is None and "sliding_attention" in kinds):
        return {window: layers}
    return {window: kinds.count("sliding_attention"), None: kinds.count("full_attention")}


def _latent(
    config: Mapping[str, Any], hidden: int, layers: int, heads: int
) -> tuple[tuple[AttentionShape, ...], list[Matrix], int]:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""
    latent, rope = int(config["kv_lora_rank"]), int(config.get("qk_rope_head_dim", 64))
    nope, value = int(config.get("qk_nope_head_dim", 128)), int(config.get("v_head_dim", 128))
    narrow = config.get("q_lora_rank")
    vectors = latent
    if narrow:
        matrices = [Matrix("q_down", narrow, hidden, layers), Matrix("q_up", heads * (nope + rope), narrow, layers)]
        vectors += int(narrow)
    else:
        matrices = [Matrix("q", heads * (nope + rope), hidden, layers)]
    matrices += [
        Matrix("kv_down", latent + rope, hidden, layers),
        Matrix("kv_up", heads * (nope + value), latent, layers),
        Matrix("out", hidden, heads * value, layers),
    ]
    if config.get("attention_bias"):
        vectors += (int(narrow) if narrow else 0) + latent + rope + hidden
    shape = AttentionShape(layers, heads, nope + rope, value, 1, latent + rope, latent=latent)
    return (shape,), matrices, vectors


def _experts(config: Mapping[str, Any], hidden: int, width: int, layers: int, rules: Rules) -> list[Matrix]:
    """Router, routed experts and shared ones."""
    experts, chosen = _count(config, "experts"), _count(config, "chosen")
    if chosen > experts:
        raise ArmillaryError(
            Code.UNSUPPORTED_MODEL,
            f"config.json: `num_experts_per_tok` must be at most the {experts} experts, given {chosen}",
            "num_experts_per_tok",
        )
    each = _optional(config, "expert_width") or width
    matrices = [Matrix("router", experts, hidden, layers)]
    matrices += [
        Matrix(m.name, m.rows, m.columns, m.count * experts, experts, chosen)
        for m in _mlp("expert_", hidden, each, layers, rules.gated)
    ]
    shared = config.get("shared_expert_intermediate_size") or each * int(config.get("n_shared_experts") or 0)
    if shared:
        matrices += _mlp("shared_", hidden, int(shared), layers, rules.gated)
    if config.get("shared_expert_intermediate_size"):
        matrices.append(Matrix("shared_router", 1, hidden, layers))
    return matrices


def _sparse_layers(config: Mapping[str, Any], layers: int) -> int:
    """How many layers have experts."""
    if not _optional(config, "experts"):
        return 0
    first = int(config.get("first_k_dense_replace") or 0)
    step = int(config.get("moe_layer_freq") or 1) if isinstance(config.get("moe_layer_freq", 1), int) else 1
    every = int(config.get("decoder_sparse_step") or 1)
    plain = config.get("mlp_only_layers") or ()
    return sum(i >= first and i % step == 0 and (i + 1) % every == 0 and i not in plain for i in range(layers))


def _norms(config: Mapping[str, Any], family: str, rules: Rules) -> int:
    if family != "falcon":
        return rules.norms
    one = config.get("parallel_attn", True) and not config.get("new_decoder_architecture")
    return 1 if one or config.get("num_ln_in_parallel_attn") == 1 else 2


def _mlp(prefix: str, hidden: int, width: int, layers: int, gated: bool) -> list[Matrix]:
    gate = [Matrix(f"{prefix}gate", width, hidden, layers)] if gated else []
    return [*gate, Matrix(f"{prefix}up", width, hidden, layers), Matrix(f"{prefix}down", hidden, width, layers)]


def _flag(config: Mapping[str, Any], source: bool | str) -> bool:
    return source if isinstance(source, bool) else bool(config.get(source, source in _ON))


def _dtype(config: Mapping[str, Any]) -> str:
    name = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return name if name in ("float32", "float16", "bfloat16") else "bfloat16"


def _optional(config: Mapping[str, Any], name: str) -> int | None:
    for field in _NAMES[name]:
        value = config.get(field)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ArmillaryError(
                Code.UNSUPPORTED_MODEL, f"config.json: `{field}` must be a whole number, given {value!r}", field
            )
        return value
    return None


def _count(config: Mapping[str, Any], name: str) -> int:
    value = _optional(config, name)
    if not value:
        fields = " or ".join(_NAMES[name])
        raise ArmillaryError(
            Code.UNSUPPORTED_MODEL,
            f"config.json: `{fields}` must be given and at least 1, given {value}: without it a model has no shape",
            _NAMES[name][0],
        )
    return value
