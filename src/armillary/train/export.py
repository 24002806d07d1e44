"""Writes a trained decoder as an ordinary Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from armillary.models.checkpoint import save_decoder
from armillary.models.decoder import Decoder
from armillary.train.card import model_card
from armillary.train.vocabulary import save_tokenizer


def export(decoder: Decoder, tokenizer: Tokenizer, folder: Path, report: dict[str, Any]) -> None:
    """Weights in bfloat16, config.json, generation_config.json, tokenizer with chat template, and the model card.

    Args:
        decoder: float32; left as it is.
        tokenizer: of the model.
        folder: created where missing; files of the same names are replaced.
        report: what `model_card` states.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rounded = Decoder(decoder.spec, torch.bfloat16)
    rounded.load_state_dict(decoder.state_dict())
    save_decoder(rounded, folder)
    save_tokenizer(tokenizer, folder, decoder.spec.max_context)
    partial = folder / "README.md.partial"
    partial.write_text(model_card(decoder.spec, report))
    partial.replace(folder / "README.md")
