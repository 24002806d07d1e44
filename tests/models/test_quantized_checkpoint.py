"""Checkpoints that gptq and awq quantised: what they stand for, what of them is kept, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from armillary.errors import ArmillaryError, Code
from armillary.kernels import native
from armillary.models.checkpoint import load_decoder, save_decoder
from armillary.models.config import read_config
from armillary.models.packed_weights import packed
from armillary.models.parameters import parameters
from armillary.models.quantized import Format, Quantization
from armillary.models.weights import CheckpointWeights
from families import write
from quantized_checkpoints import Kind, quantized_folder

KINDS = {
    "gptq": Kind(),
    "gptq-v2-zeros": Kind(symmetric=False, layout="gptq_v2"),
    "gptq-v1-zeros-64-bias": Kind(symmetric=False, group=64, bias=True),
    "gptq-whole-rows": Kind(group=-1),
    "gptq-act-order": Kind(act_order=True, symmetric=False),
    "gptq-8": Kind(bits=8, group=-1),
    "gptq-8-groups": Kind(bits=8, group=32),
    "awq": Kind("awq", symmetric=False),
    "awq-64": Kind("awq", group=64, symmetric=False),
}
SIZES = {"num_hidden_layers": 1, "hidden_size": 128, "intermediate_size": 192, "head_dim": 32}
KEPT = {
    "gptq": "int4 in groups of 32",
    "gptq-v2-zeros": "int4 in groups of 32 with zero points",
    "gptq-v1-zeros-64-bias": "int4 in groups of 64 with zero points",
    "gptq-whole-rows": "int4 in groups of 128",
    "gptq-act-order": "float16",
    "gptq-8": "int8",
    "gptq-8-groups": "float16",
    "awq": "int4 in groups of 32 with zero points",
    "awq-64": "int4 in groups of 64 with zero points",
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("qwen3", tmp_path_factory.mktemp("plain"), **SIZES)


def made(plain: Path, folder: Path, kind: Kind) -> Path:
    quantized_folder(plain, folder / "quantized", folder / "values", kind)
    return folder / "quantized"


@pytest.mark.parametrize("name", KINDS)
def test_what_integers_stand_for_and_how_they_are_kept(name: str, plain: Path, tmp_path: Path) -> None:
    folder = made(plain, tmp_path, KINDS[name])
    got, wanted = load_decoder(folder, torch.float32), load_decoder(tmp_path / "values", torch.float32)
    for (key, a), (_, b) in zip(got.named_parameters(), wanted.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0, msg=key)
    weights = CheckpointWeights(folder, read_config(folder))
    kept = {p.name: weights.kept(p) for p in parameters(weights.spec) if p.width}
    assert str(kept["layers.0.qkv"]) == KEPT[name] and kept["embed"] is None
    if KEPT[name].startswith("int4"):
        assert kept["layers.0.qkv"].scales == "float16", "as the tool wrote them"
    if name != "gptq-act-order":
        # The down projection is 192 wide, so a group of whole rows is three of 64.
        assert str(kept["layers.0.down"]) == ("int4 in groups of 64" if name == "gptq-whole-rows" else KEPT[name])
    save_decoder(got, tmp_path / "again")
    assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text())


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method"),
        ({"quant_method": "gptq", "bits": 3}, "bits"),
        ({"quant_method": "gptq", "bits": True}, "bits"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": ["gptq"]}, "checkpoint_format"),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "is_marlin_format"),
        ({"quant_method": "gptq", "bits": 4, "adapter": {"rank": 8}}, "adapter"),
        ({"quant_method": "gptq", "bits": 4, "pack_dtype": "int64"}, "pack_dtype"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version"),
        ({"quant_method": "awq", "bits": 4, "zero_point": False}, "zero_point"),
        ({"quant_method": "awq", "bits": 8}, "bits"),
        ("gptq", "quantization_config"),
    ],
)
def test_what_is_not_read_is_refused_by_name(config: object, word: str, plain: Path, tmp_path: Path) -> None:
    whole = json.loads((plain / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**whole, "quantization_config": config}))
    with pytest.raises(ArmillaryError, match=f"{word}.* must be .* given") as caught:
        read_config(tmp_path)
    assert caught.value.code is Code.UNSUPPORTED_MODEL and caught.value.param == "quantization_config"


BASE = "model.layers.0.mlp.down_proj"


@pytest.mark.skipif(native.module() is None, reason="the native kernels are not used")
@pytest.mark.parametrize(
    ("scales", "narrow"),
    [
        (lambda t: t, "float16"),
        (lambda t: t.float(), "float16"),  # wider numbers than they need
        (lambda t: t.bfloat16(), "float16"),
        (lambda t: t.bfloat16() * 2.0**-40, "bfloat16"),
        (lambda t: t.bfloat16().float() * 2.0**-40, "bfloat16"),
        (lambda t: t.float() * 2.0**-40, "float32"),
        (lambda t: t.float() * 1.0001, "float32"),
        (lambda t: t.index_fill(1, torch.tensor([3]), torch.nan), "float16"),
    ],
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_are_kept_in_16_bits_where_each_of_them_is_exact(
    scales: Callable[[torch.Tensor], torch.Tensor], narrow: str, symmetric: bool, plain: Path, tmp_path: Path
) -> None:
    folder = made(plain, tmp_path, Kind(symmetric=symmetric))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[f"{BASE}.scales"] = scales(tensors[f"{BASE}.scales"])
    save_file(tensors, path)
    weights = CheckpointWeights(folder, read_config(folder))
    down = next(p for p in parameters(weights.spec) if p.key == "layers.0.down")
    assert weights.kept(down) == Format("int4", 32, not symmetric, scales=narrow)
    found = packed(weights, Quantization("float32"), native.paths()[-1])
    (entry,) = (e for e in found.layout.entries if e.parameter.key == down.key)
    groups = down.rows // 64 * (down.width // 32)
    assert entry.size == groups * 64 * ((4 if narrow == "float32" else 2) + (not symmetric) + 16)
    got = torch.empty(down.rows, down.width)
    found.matrix(down.key).rows(torch.arange(down.rows), got)
    wanted = load_decoder(folder, torch.float32).get_parameter("layers.0.down")
    assert torch.equal(got.nan_to_num(7.0), wanted.nan_to_num(7.0)), "to the bit"


@pytest.mark.parametrize(
    ("suffix", "change", "word"),
    [
        ("qzeros", None, "qzeros must be there"),
        ("qweight", lambda t: t[:-1], "qweight must"),
        ("scales", lambda t: t[:, :-8], "scales must have shape"),
        ("qzeros", lambda t: t[:1], "qzeros must have shape"),
        ("g_idx", lambda t: t + 100, "g_idx must name"),
        ("qweight", lambda t: t.float(), "32-bit integers"),
        ("bias", lambda t: torch.ones(128), "must be zero"),
        ("qweight", None, "must contain tensor model.layers.0.mlp.down_proj.weight"),
    ],
)
def test_damaged_tensors_are_refused_by_name(
    suffix: str, change: object, word: str, plain: Path, tmp_path: Path
) -> None:
    folder = made(plain, tmp_path, Kind())
    tensors = load_file(folder / "model.safetensors")
    name = f"{BASE}.{suffix}"
    if callable(change):
        tensors[name] = change(tensors.get(name, torch.zeros(1))).contiguous()
    else:
        del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ArmillaryError, match=word) as caught:
        load_decoder(folder)
    assert caught.value.code is Code.INVALID_CHECKPOINT and "down_proj" in caught.value.message


def test_integers_that_nothing_explains_are_refused_with_what_would(plain: Path, tmp_path: Path) -> None:
    """As in old checkpoints, which have it in a file of its own."""
    folder = made(plain, tmp_path, Kind())
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    for read in (load_decoder, lambda folder: CheckpointWeights(folder, read_config(folder))):
        with pytest.raises(ArmillaryError, match="quantised ones are read where config.json has `quantization_config`"):
            read(folder)
