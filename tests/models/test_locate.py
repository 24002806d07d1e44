"""A model is found by name: bundled, on disk, in the hub's cache; and what cannot be found is said with a remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from armillary.errors import ArmillaryError, Code
from armillary.models.locate import bundled_folder, locate, locate_config
from armillary.models.shelf import at_hand

CONFIG = {
    "model_type": "llama", "vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 8, "max_position_embeddings": 32,
}  # fmt: skip


def fill(folder: Path, *files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for file in files:
        (folder / file).write_bytes(b"{}")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one snapshot folder for org/name, still empty."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("f" * 40)
    return repository / "snapshots" / ("f" * 40)


def test_the_bundled_model_needs_no_folder() -> None:
    assert locate("isles") == bundled_folder()
    assert locate_config("isles").family == "qwen3"


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "isles")
    assert locate(str(folder)) == folder
    monkeypatch.chdir(tmp_path)
    assert locate("./isles").resolve() == folder, "a dot tells a folder from the bundled model"
    assert locate("isles") == bundled_folder()


def test_a_complete_snapshot_is_taken_from_the_cache(cache: Path) -> None:
    fill(cache, "tokenizer.json", "model.safetensors")
    assert locate("org/name") == cache
    assert locate_config("org/name").vocab_size == 16


def test_a_sharded_snapshot_is_complete_when_every_shard_is_there(cache: Path) -> None:
    fill(cache, "tokenizer.json", "a.safetensors")
    (cache / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
    )
    with pytest.raises(ArmillaryError, match="not complete on this machine"):
        locate("org/name")
    (cache / "b.safetensors").write_bytes(b"")
    assert locate("org/name") == cache


@pytest.mark.parametrize("name", ["./nowhere", "/no/where/at/all", "~/no such folder", "", "a//b", "../x"])
def test_what_can_only_be_a_folder_is_reported_as_one(name: str) -> None:
    if name == "":
        name = "/"  # a folder, but of no model
    with pytest.raises(ArmillaryError) as caught:
        locate(name)
    assert caught.value.code is Code.MODEL_NOT_FOUND
    assert repr(name) in caught.value.message


def test_a_folder_without_config_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArmillaryError, match=r"holds no config\.json"):
        locate(str(tmp_path))
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(ArmillaryError, match="that is a file"):
        locate(str(tmp_path / "model.gguf"))


def test_without_a_network_the_error_names_what_to_do(cache: Path) -> None:
    with pytest.raises(ArmillaryError) as caught:
        locate("org/other")
    assert caught.value.code is Code.UNREACHABLE
    for part in ("org/other", "HF_HUB_OFFLINE", "give its path", "isles"):
        assert part in caught.value.message


def test_the_shelf_holds_the_bundled_model_and_the_cached_ones(cache: Path) -> None:
    fill(cache, "tokenizer.json", "model.safetensors")
    books = {book.name: book for book in at_hand()}
    assert list(books) == ["isles", "org/name"]
    assert books["isles"].problem == ""
    assert books["isles"].parameters > 1e6
    assert books["org/name"].family == "llama"


def test_a_book_that_cannot_be_served_says_why(cache: Path) -> None:
    fill(cache)
    assert "safetensors" in at_hand()[1].problem
    (cache / "config.json").write_text('{"model_type": "unheard_of"}')
    assert "unheard_of" in at_hand()[1].problem


def test_an_encoder_is_complete_with_its_pooling_and_on_the_shelf_by_its_kind(cache: Path) -> None:
    fill(cache, "tokenizer.json", "model.safetensors")
    (cache / "config.json").write_text('{"model_type": "bert", "hidden_size": 24, "num_attention_heads": 2}')
    (cache / "modules.json").write_text(
        '[{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]'
    )
    with pytest.raises(ArmillaryError, match="not complete on this machine"):
        locate("org/name")
    assert "1_Pooling" in at_hand()[1].problem
    (cache / "1_Pooling").mkdir()
    (cache / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert locate("org/name") == cache
    assert locate_config("org/name").max_context == 512
    book = at_hand()[1]
    assert (book.family, book.kind, book.problem) == ("bert", "encoder", "") and book.parameters > 1000
