"""The decoder as others rely on it: gradients, independence of rows, packing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from armillary.errors import ArmillaryError
from armillary.models.checkpoint import load_decoder
from armillary.models.config import spec_from_config
from armillary.models.decoder import Decoder
from armillary.models.packed import PackedAttention, packed_positions
from families import CONFIGS, FAMILIES, VOCAB, oracle

LENGTHS = [9, 30, 1, 30, 14]


def tokens(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "gemma2"])
def test_gradients_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = oracle(name)
    model.save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path)
    ids = tokens(sum(LENGTHS))
    hidden = decoder(ids, packed_positions(LENGTHS), PackedAttention(decoder.spec, LENGTHS))
    parts = decoder.logits(hidden).split(LENGTHS)
    documents = ids.split(LENGTHS)
    ours = sum(
        torch.nn.functional.cross_entropy(part[:-1], document[1:], reduction="sum")
        for part, document in zip(parts, documents, strict=True)
        if len(document) > 1
    )
    theirs = sum(
        torch.nn.functional.cross_entropy(model(document[None]).logits[0, :-1], document[1:], reduction="sum")
        for document in documents
        if len(document) > 1
    )
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-5)
    ours.backward()
    theirs.backward()
    grads = {key: parameter.grad for key, parameter in model.named_parameters()}
    layer = decoder.layers[0]
    wanted = torch.cat([grads[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"])
    torch.testing.assert_close(layer.qkv.grad, wanted, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(decoder.embed.grad, grads["model.embed_tokens.weight"], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(decoder.norm.grad, grads["model.norm.weight"], atol=1e-3, rtol=1e-4)
    if name != "qwen3_moe":
        wanted = torch.cat([grads[f"model.layers.0.mlp.{part}_proj.weight"] for part in ("gate", "up")])
        torch.testing.assert_close(layer.gate_up.grad, wanted, atol=1e-3, rtol=1e-4)
    assert all(parameter.grad is not None for parameter in decoder.parameters())


class Diagonal:
    """Attention that sees only the token itself, so that every row stands alone."""

    def __init__(self, decoder: Decoder) -> None:
        self.spec = decoder.spec

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        shared = q.shape[1] // k.shape[1]
        return v.repeat_interleave(shared, dim=1) + 0.01 * q * k.repeat_interleave(shared, dim=1)


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "gemma3", "phi3_partial", "olmo2"])
def test_a_token_does_not_depend_on_its_neighbours(
    name: str, dtype: torch.dtype, settled: bool, tmp_path: Path
) -> None:
    decoder = load_decoder(FAMILIES[name](tmp_path), dtype)
    if settled:
        decoder.settle()
    ids, positions = tokens(41), torch.arange(41) * 7
    attend = Diagonal(decoder)
    with torch.inference_mode():
        whole = decoder(ids, positions, attend)
        scores = decoder.logits(whole)
        for start, end in [(0, 1), (5, 6), (40, 41), (3, 5), (7, 20), (0, 33), (8, 41)]:
            part = decoder(ids[start:end], positions[start:end], attend)
            assert torch.equal(part, whole[start:end]), (start, end)
            assert torch.equal(decoder.logits(part), scores[start:end]), (start, end)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_settling_changes_no_result(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    plain, settled = load_decoder(FAMILIES[name](tmp_path), dtype), load_decoder(tmp_path, dtype)
    settled.settle()
    ids, positions, attend = tokens(20), torch.arange(20), PackedAttention(plain.spec, [20])
    with torch.inference_mode():
        wanted, got = plain(ids, positions, attend), settled(ids, positions, attend)
        if plain.compute_dtype == torch.float32:
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(settled.logits(got), plain.logits(wanted), atol=1e-4, rtol=1e-4)
        else:
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", ["llama", "qwen3_window", "gemma2"])
def test_packing_equals_one_document_at_a_time(name: str, tmp_path: Path) -> None:
    decoder = load_decoder(FAMILIES[name](tmp_path))
    lengths = [3, 30, 29, 1, 17, 30, 2, 25]
    ids = tokens(sum(lengths))
    with torch.inference_mode():
        together = decoder(ids, packed_positions(lengths), PackedAttention(decoder.spec, lengths))
        for document, got in zip(ids.split(lengths), together.split(lengths), strict=True):
            alone = PackedAttention(decoder.spec, [len(document)])
            torch.testing.assert_close(got, decoder(document, torch.arange(len(document)), alone), atol=1e-5, rtol=1e-4)


def test_packing_pads_little() -> None:
    generator = torch.Generator().manual_seed(0)
    spec = _small()
    for _ in range(20):
        lengths = torch.randint(1, 200, (40,), generator=generator).tolist()
        attend = PackedAttention(spec, lengths)
        assert sum(rows * width for rows, width, _ in attend._batches) <= sum(lengths) / 0.8


def test_wrong_lengths_are_refused() -> None:
    with pytest.raises(ArmillaryError, match="lengths must be positive"):
        PackedAttention(_small(), [3, 0])
    q = torch.zeros(4, 2, 8)
    with pytest.raises(ArmillaryError, match="must be 5 tokens"):
        PackedAttention(_small(), [3, 2])(0, q, q, q)


def test_initialise_draws_the_same_weights_from_the_same_seed() -> None:
    first, second = Decoder(_small()), Decoder(_small())
    for decoder in (first, second):
        decoder.initialise(generator=torch.Generator().manual_seed(5))
    for (name, left), right in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(left, right)
        if name.endswith("norm"):
            assert torch.equal(left, torch.ones_like(left))
        else:
            assert 0.015 < float(left.detach().std()) < 0.025
    assert Decoder(_small(), device="meta").embed.is_meta


def _small():
    return spec_from_config(
        {
            "model_type": "qwen3",
            "vocab_size": 300,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "max_position_embeddings": 64,
        }
    )
