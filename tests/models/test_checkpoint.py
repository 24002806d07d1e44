"""Checkpoints in and out: sharded, tied, narrow, incomplete, and read back by transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from armillary.errors import ArmillaryError, Code
from armillary.kernels.narrow import lacks_arithmetic
from armillary.models.checkpoint import checkpoint_bytes, load_decoder, save_decoder
from armillary.models.decoder import Decoder
from armillary.models.packed import PackedAttention
from armillary.models.parts import INDEX, SINGLE, layout
from families import FAMILIES, TEN, VOCAB, oracle

TOKENS = torch.arange(3, 43) % VOCAB


def logits(decoder: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        attend = PackedAttention(decoder.spec, [len(TOKENS)])
        return decoder.logits(decoder(TOKENS, torch.arange(len(TOKENS)), attend))


def same(left: Decoder, right: Decoder) -> bool:
    a, b = dict(left.named_parameters()), dict(right.named_parameters())
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", [*TEN, "llama_bias"])
def test_what_is_saved_is_the_same_model_to_us_and_to_transformers(name: str, tmp_path: Path) -> None:
    import transformers

    model = oracle(name)
    model.save_pretrained(tmp_path / "theirs")
    decoder = load_decoder(tmp_path / "theirs")
    save_decoder(decoder, tmp_path / "ours")
    assert same(load_decoder(tmp_path / "ours"), decoder)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    left, right = model.state_dict(), again.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert not list((tmp_path / "ours").glob("*.partial"))


def test_sharded_checkpoints_both_ways(tmp_path: Path) -> None:
    model = oracle("qwen3_moe")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="60KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    decoder = load_decoder(tmp_path / "many")
    assert same(decoder, load_decoder(tmp_path / "one"))
    save_decoder(decoder, tmp_path / "ours", shard_bytes=60_000)
    index = json.loads((tmp_path / "ours" / INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 3
    assert index["metadata"]["total_size"] == checkpoint_bytes(tmp_path / "ours")
    assert same(load_decoder(tmp_path / "ours"), decoder)


def test_experts_may_be_stored_one_by_one(tmp_path: Path) -> None:
    """Every expert's tensors are found, whatever way this version of transformers writes them."""
    FAMILIES["mixtral"](tmp_path)
    names = set(load_file(tmp_path / SINGLE))
    wanted = {part.name for part in layout(load_decoder(tmp_path).spec)}
    assert names == wanted


def test_tied_embeddings_are_one_matrix(tmp_path: Path) -> None:
    FAMILIES["qwen3"](tmp_path)
    decoder = load_decoder(tmp_path)
    assert decoder.head is None
    tensors = load_file(tmp_path / SINGLE)
    assert "lm_head.weight" not in tensors
    # Some checkpoints carry the tied matrix nevertheless.
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, tmp_path / SINGLE)
    assert same(load_decoder(tmp_path), decoder)


@pytest.mark.parametrize("name", TEN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_compute_what_wide_copies_of_them_do(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    oracle(name).to(dtype).save_pretrained(tmp_path)
    narrow, wide = load_decoder(tmp_path), load_decoder(tmp_path, torch.float32)
    assert narrow.dtype == dtype and narrow.spec.dtype == str(dtype).removeprefix("torch.")
    assert checkpoint_bytes(tmp_path) * 2 == checkpoint_bytes(tmp_path, torch.float32)
    got, wanted = logits(narrow), logits(wide)
    assert got.dtype == torch.float32
    if lacks_arithmetic(dtype):
        assert narrow.compute_dtype == torch.float32
        # Gemma's embedding factor is rounded to the weights' type; all else is float32 in both.
        tolerance = 0.02 if name.startswith("gemma") else 1e-4
    else:
        tolerance = 0.3
    far = ~((got - wanted).abs() <= tolerance * wanted.std()).all(dim=-1)
    # Where the router's products are rounded to the weights' type, a near tie of two experts may go either way, and all
    # later positions attend to that one.
    rounded = not lacks_arithmetic(dtype) and narrow.spec.layers[0].mlp.experts > 0
    agree = int(far.nonzero()[0]) if far.any() else len(far)
    assert agree >= (len(far) // 2 if rounded else len(far))
    save_decoder(narrow, tmp_path / "again")
    assert same(load_decoder(tmp_path / "again"), narrow)


def test_wide_weights_can_be_held_narrow(tmp_path: Path) -> None:
    FAMILIES["llama"](tmp_path)
    decoder = load_decoder(tmp_path, torch.bfloat16)
    assert {parameter.dtype for parameter in decoder.parameters() if parameter.ndim > 1} == {torch.bfloat16}
    assert (logits(decoder) - logits(load_decoder(tmp_path))).abs().max() > 0


def damaged(tmp_path: Path) -> Path:
    folder = FAMILIES["llama"](tmp_path / "good")
    return Path(shutil.copytree(folder, tmp_path / "bad"))


def refused(folder: Path, words: str) -> None:
    with pytest.raises(ArmillaryError, match=words) as caught:
        load_decoder(folder)
    assert caught.value.code is Code.INVALID_CHECKPOINT


def test_damaged_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    folder = damaged(tmp_path)
    tensors = load_file(folder / SINGLE)
    name = "model.layers.2.self_attn.k_proj.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, folder / SINGLE)
    refused(folder, f"must contain tensor {name}")
    save_file({**tensors, "model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, folder / SINGLE)
    refused(folder, "must not contain tensor model.layers.0.self_attn.q_proj.bias")
    save_file({**tensors, name: torch.zeros(32, 63)}, folder / SINGLE)
    refused(folder, rf"{name} must have shape \[32, 64\], given \[32, 63\]")
    save_file({**tensors, name: tensors[name].to(torch.int32)}, folder / SINGLE)
    refused(folder, f"{name} must be of element type .* given I32")
    (folder / SINGLE).write_bytes(b"\xff" * 100)
    refused(folder, "must be a safetensors file")
    (folder / SINGLE).unlink()
    refused(folder, "must contain model.safetensors or")
    (folder / INDEX).write_text(json.dumps({"weight_map": {name: "../../elsewhere.safetensors"}}))
    refused(folder, "must name files in its own folder")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model-00001.safetensors")}))
    refused(folder, "must be a safetensors file")
