"""Logits equal those of transformers, for every family and variant, on random weights in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from armillary.models.checkpoint import load_decoder
from armillary.models.packed import PackedAttention, packed_positions
from families import CONFIGS, VOCAB, oracle

LENGTHS = [40, 1, 23, 40, 17]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = oracle(name)
    model.save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path)
    # The oracle switches to the long factors when the sequence is long; ours when the context served is.
    lengths = [length for length in LENGTHS if length > 16] if name == "phi3_longrope" else LENGTHS
    tokens = torch.randint(0, VOCAB, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        attend = PackedAttention(decoder.spec, lengths)
        ours = decoder.logits(decoder(tokens, packed_positions(lengths), attend))
        for document, got in zip(tokens.split(lengths), ours.split(lengths), strict=True):
            wanted = model(document[None]).logits[0]
            assert wanted.std() > 0.05
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
