"""The tokenizer of the Isles: byte-level BPE with a small vocabulary and every digit a token of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from armillary.train.chat import CHAT_TEMPLATE, END, MARKS, SPECIAL, STOP, render
from armillary.world import names
from armillary.world.split import Split
from armillary.world.tasks import TASKS, UNSCORED

# What answers are made of (digits, names, goods, trades, colours, shapes, keys) is the same tokens wherever it stands:
# in a sentence, after a quote, at the start of an answer. Copying is then one skill, not a spelling to learn for each
# word. So such words never take the blank before them. It goes with the punctuation before it, or is a token of its
# own; "34 + 27" is five tokens. All other words take it, as is usual.
_BARE = "|".join(sorted({*names.WORDS, *names.COLOURS, *names.SHAPES, *names.KEYS}))
_ANSWER = rf"(?:\p{{Lu}}|\p{{N}}|(?:{_BARE})(?!\p{{L}}))"
PATTERN = "|".join(
    (
        rf"(?:{_BARE})(?!\p{{L}})",
        r"\p{Lu}+\p{Ll}*",
        rf" ?[^\s\p{{L}}\p{{N}}]+ (?={_ANSWER})",
        rf" (?={_ANSWER})",
        r" ?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


def train_tokenizer(vocab_size: int, seed: int, documents: int = 20_000) -> Tokenizer:
    """Trains on the train side only. Any UTF-8 text can be encoded, since all 256 bytes are in the vocabulary.

    Args:
        vocab_size: tokens, special ones included; must be at least 263 (the bytes and the special tokens).
        seed: of the text trained on.
        documents: how many to train on.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    marks = [AddedToken(mark, special=False, normalized=False) for mark in MARKS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL, *marks],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed, documents), trainer)
    return tokenizer


def _texts(seed: int, documents: int) -> Iterator[str]:
    """Text of every task, with proper names broken between their syllables: a name is then never one token, and a
    held-out name is made of tokens that training has seen."""
    makers = list({**TASKS, **UNSCORED}.values())
    known = {
        first + second
        for table in (names.PEOPLE, names.TOWNS, names.ISLANDS)
        for first in table[0]
        for second in table[1]
    }
    heads = {first for table in (names.PEOPLE, names.TOWNS, names.ISLANDS) for first in table[0]}

    def divide(match: re.Match[str]) -> str:
        word = match.group()
        if word not in known:
            return word
        head = next(head for head in sorted(heads, key=len) if word.startswith(head) and word[len(head) :] in _TAILS)
        return f"{head}\n{word[len(head) :]}"

    for index in range(documents):
        rng = Random(f"{seed}/tokenizer/{index}")
        task = makers[index % len(makers)](rng, Split.TRAIN, 3)
        text = render([*task.messages, {"role": "assistant", "content": task.answer}], task.tools)
        yield re.sub(r"[A-Z][a-z]+", divide, text)
    # Rare names and words would otherwise fall apart further.
    for word in _BARE.split("|"):
        yield f"{word}\n" * (documents // 50)
    for first, second in (names.PEOPLE, names.TOWNS, names.ISLANDS):
        for head in first:
            yield f"{head}\n" * (documents // 50)
        for tail in second:
            yield f"{tail}\n" * (documents // 50)


_TAILS = {second for table in (names.PEOPLE, names.TOWNS, names.ISLANDS) for second in table[1]}


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_context: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json (with the chat template) as transformers reads them."""
    definition = json.loads(tokenizer.to_str())
    for token in definition["added_tokens"]:  # the trainer makes all special, and decoding would then drop tool calls
        token["special"] = token["content"] in SPECIAL
    (folder / "tokenizer.json").write_text(json.dumps(definition, ensure_ascii=False, indent=2), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": END,
        "pad_token": STOP,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_context,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
