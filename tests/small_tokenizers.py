"""Two small tokenizers, trained here: byte-level BPE as in Qwen and Llama 3, and one spelled like SentencePiece."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "The ferry from Port Ellin to Marrow takes three hours. A loaf costs 4 crowns.",
    "naïve café — “quoted” … 你好，世界。 こんにちは 🙂🙃👩‍👩‍👧 Ελληνικά русский",
    'def add(a, b):\n    return a + b\n\n{"name": "add", "arguments": {"a": 1}}',
    "user assistant system tool <tool_call> </tool_call>",
] * 3

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@lru_cache
def byte_level() -> str:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("   ", normalized=False)])
    return tokenizer.to_str()


@lru_cache
def sentencepiece() -> str:
    """Llama-2's arrangement: metaspace, byte fallback, a begin-of-text token, the first space stripped."""
    specials = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=specials + bytes_, show_progress=False)
    learner = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.train_from_iterator(TEXTS[:1] + TEXTS[2:4], trainer)  # no Chinese, no emoji: those fall back to bytes
    definition = json.loads(learner.to_str())
    definition["added_tokens"] = [entry for entry in definition["added_tokens"] if entry["content"] in specials]
    definition["model"]["byte_fallback"] = True
    definition["model"]["fuse_unk"] = True
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer.to_str()


BYTE_LEVEL_CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "chat_template": CHATML,
}
SENTENCEPIECE_CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}


def write_tokenizer(folder: Path, definition: str, settings: dict[str, Any], **others: Any) -> Path:
    """A folder as the Hugging Face hub has it; `others` are further JSON files by stem."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(definition, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    for stem, content in others.items():
        (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
