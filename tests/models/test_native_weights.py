"""Packed weights: the same bits from a decoder, from a checkpoint, from any number of threads, and from the cache."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("armillary.kernels._native")

from armillary.kernels import native
from armillary.models import packed_cache
from armillary.models.bfloat16 import converted, narrowed, widened
from armillary.models.checkpoint import load_decoder
from armillary.models.config import read_config
from armillary.models.decoder_weights import DecoderWeights
from armillary.models.packed_cache import FOLDER, PackedCache, worth_keeping
from armillary.models.packed_weights import PackedWeights, make_layout, packed
from armillary.models.quantized import FLOAT_BYTES, Quantization, rounded
from armillary.models.weights import CheckpointWeights
from families import write
from quantized_checkpoints import Kind, quantized_folder

PATH = native.paths()[-1]
ASKED = [Quantization("float32"), Quantization("bfloat16"), Quantization("int8"), Quantization("int4")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("qwen3_moe", tmp_path_factory.mktemp("model"), num_hidden_layers=2)


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked.dtype)
def test_a_checkpoint_and_a_decoder_pack_to_the_same_bits(asked: Quantization, folder: Path) -> None:
    decoder, told = load_decoder(folder), []
    one = packed(DecoderWeights(decoder), asked, PATH)
    two = packed(CheckpointWeights(folder, read_config(folder)), asked, PATH, 3, told.append)
    assert np.array_equal(one.memory, two.memory)
    assert sum(told) == two.layout.size and min(told) >= 0
    assert all(parameter is None for parameter in (decoder.embed, decoder.norm, decoder.layers[0].qkv)), "let go of"


def test_kinds_of_matrices_take_the_formats_that_they_should(folder: Path) -> None:
    layout = make_layout(read_config(folder), PATH, Quantization("int4"))
    forms = {entry.parameter.kind: str(entry.form) for entry in layout.entries if entry.parameter.expert in (None, 0)}
    assert forms["qkv"] == "int4 in groups of 32" and forms["head"] == "int8" and forms["router"] == "float32"
    assert forms["expert_gate_up"] == "int4 in groups of 32"
    assert forms["expert_down"] == "int8", "40 is no multiple of 32"
    assert forms["embed"] == forms["norm"] == "None"
    qkv = next(entry for entry in layout.entries if entry.parameter.key == "layers.0.qkv")
    assert qkv.form is not None and qkv.form.scales == "bfloat16"
    blocks = -(-qkv.parameter.rows // 64) * (qkv.parameter.width // 32)
    assert qkv.size == blocks * 64 * (2 + 16), "a scale in 16 bits for 32 weights: four and a half bits a weight"


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantised_values_are_near_those_of_the_checkpoint(dtype: str, folder: Path) -> None:
    decoder = load_decoder(folder)
    wanted = decoder.layers[0].qkv.detach().clone()
    found = packed(DecoderWeights(decoder), Quantization(dtype), PATH)
    got = torch.empty_like(wanted)
    found.matrix("layers.0.qkv").rows(torch.arange(len(wanted)), got)
    error = (got - wanted).norm() / wanted.norm()
    assert 0 < error < {"int8": 0.01, "int4": 0.11}[dtype]


class Kept:
    """A model with its cache."""

    def __init__(self, folder: Path, asked: Quantization = ASKED[2]) -> None:
        self.source = CheckpointWeights(folder, read_config(folder))
        self.layout = make_layout(self.source.spec, PATH, asked)
        self.cache = PackedCache(self.source, self.layout)

    def packed(self) -> native.Bytes:
        weights = PackedWeights(self.layout, native.aligned(self.layout.size))
        weights.pack(self.source, 1)
        return weights.memory


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packed_cache, "SPARE_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path, folder: Path) -> Path:
    copy = tmp_path / "model"
    copy.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.mark.usefixtures("roomy")
def test_what_is_read_back_is_what_was_packed(model: Path) -> None:
    first = Kept(model)
    assert first.cache.open() is None and not worth_keeping(first.layout)
    packed = first.packed()
    path = first.cache.write(packed)
    assert path is not None and path.parent == model / FOLDER and [p.name for p in path.parent.iterdir()] == [path.name]
    found = Kept(model).cache.open()
    assert found is not None and np.array_equal(found, packed)
    assert found.ctypes.data % native.ALIGNMENT == 0
    assert Kept(model, ASKED[3]).cache.open() is None, "another format"


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize("damage", ["truncated", "foreign", "header", "zeroed", "longer"])
def test_a_damaged_file_is_ignored_and_written_anew(damage: str, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept(model)
    packed = kept.packed()
    path = kept.cache.write(packed)
    assert path is not None
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[-1:]
    elif damage == "foreign":
        content[:4] = b"ELF!"
    elif damage == "header":
        content[60] ^= 1
    elif damage == "zeroed":
        content[-4096:] = bytes(4096)
    else:
        content += b"more"
    path.write_bytes(content)
    with caplog.at_level(logging.INFO):
        assert Kept(model).cache.open() is None
    assert "will be written anew" in caplog.text
    assert kept.cache.write(packed) == path
    found = Kept(model).cache.open()
    assert found is not None and np.array_equal(found, packed)


@pytest.mark.usefixtures("roomy")
def test_other_content_gives_another_key_and_old_files_go(model: Path) -> None:
    first = Kept(model)
    first.cache.write(first.packed())
    other = Kept(model, ASKED[3])
    other.cache.write(other.packed())
    assert len(list((model / FOLDER).iterdir())) == 2
    path = model / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    changed = Kept(model)
    assert changed.cache.open() is None
    changed.cache.write(changed.packed())
    assert [p.name for p in (model / FOLDER).iterdir()] == [changed.cache.name], "those of the old content are gone"
    assert changed.cache.open() is not None


@pytest.mark.usefixtures("roomy")
def test_kernels_that_pack_differently_do_not_take_the_file(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(model)
    kept.cache.write(kept.packed())
    monkeypatch.setattr(packed_cache, "trial", lambda *about: b"another build")
    assert Kept(model).cache.open() is None


@pytest.mark.usefixtures("roomy")
def test_where_the_model_cannot_be_written_the_users_cache_is_taken(model: Path, tmp_path: Path) -> None:
    (model / FOLDER).write_text("in the way")
    kept = Kept(model)
    path = kept.cache.write(kept.packed())
    assert path is not None and path.is_relative_to(tmp_path / "cache")
    assert Kept(model).cache.open() is not None


@pytest.mark.usefixtures("roomy")
def test_a_user_without_a_home_keeps_nothing_where_the_model_cannot_be_written(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("could not determine home directory")

    (model / FOLDER).write_text("in the way")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    kept = Kept(model)
    assert kept.cache.open() is None and kept.cache.write(kept.packed()) is None


def test_nothing_is_written_without_room(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_cache, "SPARE_BYTES", 1 << 60)
    kept = Kept(model)
    with caplog.at_level(logging.INFO):
        assert kept.cache.write(kept.packed()) is None
    assert "bytes are free" in caplog.text and not list((model / FOLDER).iterdir())


@pytest.mark.usefixtures("roomy")
def test_a_disk_that_fills_up_leaves_nothing_behind(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    kept = Kept(model)
    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.INFO):
        assert kept.cache.write(kept.packed()) is None
    assert "no space left" in caplog.text
    assert not list(tmp_path.rglob("*.packed*"))


@pytest.mark.parametrize("dtype", FLOAT_BYTES)
def test_numbers_are_rounded_as_torch_rounds_them(dtype: str) -> None:
    for value in (1.0, 24.0, 1 / 3, 45.254834, 3.5078, 1.00390625, 1.01171875, 0.0):
        assert rounded(value, dtype) == float(torch.tensor(value, dtype=getattr(torch, dtype)))


def test_bfloat16_is_widened_and_rounded_as_torch_does_it() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert np.array_equal(widened(bits).view(np.uint32), wide.view(np.uint32))
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, dtype=np.uint32).view(np.float32)
    ties = (np.arange(1 << 16, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    for values in (random, ties, wide):
        wanted = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
        got, none = narrowed(values), np.isnan(values)
        assert np.array_equal(got[~none], wanted[~none]) and np.isnan(widened(got[none])).all()
    for dtype in FLOAT_BYTES:
        wanted = torch.from_numpy(wide).to(getattr(torch, dtype)).float().numpy()
        assert np.array_equal(widened(converted(bits, dtype)), wanted, equal_nan=True)


@pytest.mark.usefixtures("roomy")
def test_a_change_that_samples_miss_is_noticed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a norm or a row of an embedding in a file of gigabytes."""
    monkeypatch.setattr(packed_cache, "_SAMPLE_BYTES", 16)
    monkeypatch.setattr(packed_cache, "_SAMPLES", 2)
    kept = Kept(model)
    kept.cache.write(kept.packed())
    path = model / "model.safetensors"
    content, written = bytearray(path.read_bytes()), path.stat().st_mtime
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, (written + 60, written + 60))
    assert Kept(model).cache.open() is None


@pytest.mark.usefixtures("roomy")
def test_a_copy_that_keeps_times_keeps_its_packed_weights(model: Path, tmp_path: Path) -> None:
    kept = Kept(model)
    kept.cache.write(kept.packed())
    shutil.copytree(model, tmp_path / "copy")
    assert Kept(tmp_path / "copy").cache.open() is not None


@pytest.mark.usefixtures("roomy")
def test_two_who_write_at_once_do_not_disturb_each_other(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Kept(model), Kept(model)
    packed, replace, paths = one.packed(), os.replace, []

    def meanwhile(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        paths.append(two.cache.write(packed))
        replace(source, target)

    monkeypatch.setattr(os, "replace", meanwhile)
    paths.append(one.cache.write(packed))
    assert paths == [model / FOLDER / one.cache.name] * 2
    assert [p.name for p in (model / FOLDER).iterdir()] == [one.cache.name] and Kept(model).cache.open() is not None


@pytest.mark.usefixtures("roomy")
def test_integers_that_are_to_be_read_otherwise_are_packed_anew(tmp_path: Path) -> None:
    """As after config.json was put right: not a byte of the weights changes."""
    plain = write("qwen3", tmp_path / "plain", num_hidden_layers=1, hidden_size=128, intermediate_size=192, head_dim=32)
    quantized_folder(plain, tmp_path / "model", tmp_path / "values", Kind(symmetric=False))

    def kept() -> Kept:
        found = Kept(tmp_path / "model", Quantization("float32"))
        found.layout = make_layout(found.source.spec, PATH, Quantization("float32"), found.source.kept)
        found.cache = PackedCache(found.source, found.layout)
        return found

    first = kept()
    wrong = first.packed()
    first.cache.write(wrong)
    assert kept().cache.open() is not None
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"gptq"}', '"gptq_v2"}'))
    assert "gptq_v2" in config.read_text()
    second = kept()
    assert second.cache.open() is None and not np.array_equal(second.packed(), wrong)


@pytest.mark.usefixtures("roomy")
def test_a_writer_that_ends_meanwhile_disturbs_nobody(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(model)
    (model / FOLDER).mkdir()
    other = model / FOLDER / f"{kept.cache.name}.partial.0"
    other.write_bytes(b"begun")
    glob = Path.glob

    def then_gone(folder: Path, pattern: str) -> list[Path]:
        found = list(glob(folder, pattern))
        if "partial" in pattern:
            other.unlink()
        return found

    monkeypatch.setattr(Path, "glob", then_gone)
    assert kept.cache.write(kept.packed()) == model / FOLDER / kept.cache.name


@pytest.mark.usefixtures("roomy")
def test_what_a_file_replaces_makes_room_for_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Kept(model)
    path = first.cache.write(first.packed())
    assert path is not None
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    changed = Kept(model)

    def free(folder: Path) -> SimpleNamespace:
        return SimpleNamespace(free=0 if path.exists() else changed.layout.size)

    monkeypatch.setattr(shutil, "disk_usage", free)
    assert changed.cache.write(changed.packed()) == path
