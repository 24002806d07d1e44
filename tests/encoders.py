"""Tiny random encoder checkpoints of every family, made by transformers, with tokenizers trained here."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from small_tokenizers import TEXTS

POSITIONS = 64
_BERT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 50,
    "initializer_range": 0.15,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {**_BERT, "max_position_embeddings": POSITIONS, "pad_token_id": 0}),
    "bert_relu": ("Bert", {**_BERT, "max_position_embeddings": POSITIONS, "hidden_act": "relu"}),
    "roberta": (
        "Roberta",
        {**_BERT, "max_position_embeddings": POSITIONS + 2, "pad_token_id": 1, "type_vocab_size": 1},
    ),
    "xlm-roberta": (
        "XLMRoberta",
        {**_BERT, "max_position_embeddings": POSITIONS + 2, "pad_token_id": 1, "type_vocab_size": 1},
    ),
    "camembert": (
        "Camembert",
        {**_BERT, "max_position_embeddings": POSITIONS + 2, "pad_token_id": 1, "hidden_act": "gelu_new"},
    ),
    "distilbert": (
        "DistilBert",
        {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 50, "max_position_embeddings": POSITIONS,
         "initializer_range": 0.15},
    ),
}  # fmt: skip
"""Name -> (prefix of the transformers classes, fields)."""


@lru_cache
def wordpiece() -> str:
    """BERT's arrangement: lower case, pieces of words, [CLS] and [SEP] around texts, types for pairs."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer.to_str()


@lru_cache
def bytes_of_roberta() -> str:
    """RoBERTa's arrangement: byte-level BPE, <s> and </s> around texts, two </s> between those of a pair."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer.to_str()


@lru_cache
def unigram() -> str:
    """XLM-RoBERTa's arrangement: a SentencePiece unigram vocabulary."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=specials, unk_token="<unk>", show_progress=False
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer.to_str()


TOKENIZERS = {
    "bert": wordpiece, "bert_relu": wordpiece, "distilbert": wordpiece, "roberta": bytes_of_roberta,
    "xlm-roberta": unigram, "camembert": unigram,
}  # fmt: skip


def vocabulary(name: str) -> int:
    """Tokens that the tokenizer of that name has."""
    return tokenizers.Tokenizer.from_str(TOKENIZERS[name]()).get_vocab_size()


def oracle(name: str, kind: str = "Model", **changes: Any) -> Any:
    """The transformers model of that name, random in float32, every norm and bias off its identity."""
    import transformers

    prefix, fields = CONFIGS[name]
    config = getattr(transformers, f"{prefix}Config")(
        **{"vocab_size": vocabulary(name), **fields, **({"num_labels": 1} if "Sequence" in kind else {}), **changes}
    )
    config._attn_implementation = "eager"
    torch.manual_seed(sum(map(ord, name)))
    model = getattr(transformers, f"{prefix}{kind}")(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def write_tokenizer(name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(TOKENIZERS[name](), encoding="utf-8")
    wordpieces = TOKENIZERS[name] is wordpiece
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    other = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named if wordpieces else other), encoding="utf-8")


def write(name: str, folder: Path, kind: str = "Model", **changes: Any) -> Any:
    """Write a whole checkpoint into `folder`; returns the transformers model."""
    model = oracle(name, kind, **changes)
    model.save_pretrained(folder)
    write_tokenizer(name, folder)
    return model


def write_layout(folder: Path, mode: str = "pooling_mode_mean_tokens", normalize: bool = True) -> None:
    """The files of sentence-transformers beside a checkpoint."""
    names = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    entries = [
        {
            "idx": i,
            "name": str(i),
            "path": "" if not i else f"{i}_{name}",
            "type": f"sentence_transformers.models.{name}",
        }
        for i, name in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, mode: True}))
