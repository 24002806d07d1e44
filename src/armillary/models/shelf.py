"""The models that this machine holds: the bundled one, and complete ones in the local hub cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from armillary.errors import ArmillaryError
from armillary.models.encoder_config import read_model
from armillary.models.pooling import Kind, read_pooling


@dataclass(frozen=True)
class Book:
    """A model on the shelf.

    Attributes:
        name: what `serve` takes.
        folder: where it lies.
        family: config.json's model_type, or `?`.
        parameters: weights in all; 0 where the config cannot be read.
        weights: bytes of its safetensors files.
        context: positions it is meant for; 0 where the config cannot be read.
        problem: why it cannot be served; empty where it can.
        kind: what it does: a decoder generates and gives vectors, an encoder gives vectors, a scorer ranks.
    """

    name: str
    folder: Path
    family: str
    parameters: int
    weights: int
    context: int
    problem: str
    kind: Kind = "decoder"


def at_hand() -> list[Book]:
    """The bundled model first, then those of the hub cache by name. Reads no network."""
    from armillary.models.locate import bundled_folder

    folders = [("isles", bundled_folder())]
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cached = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        cached = frozenset()
    for repository in sorted(cached, key=lambda repository: repository.repo_id):
        newest = max(repository.revisions, key=lambda revision: revision.last_modified, default=None)
        if repository.repo_type == "model" and newest is not None:
            folders.append((repository.repo_id, newest.snapshot_path))
    return [_book(name, folder) for name, folder in folders if (folder / "config.json").is_file()]


def _book(name: str, folder: Path) -> Book:
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    try:
        spec = read_model(folder)
        kind = read_pooling(folder, spec).kind
    except ArmillaryError as error:
        return Book(name, folder, "?", 0, weights, 0, error.message)
    missing = "" if weights else "no *.safetensors files"
    return Book(name, folder, spec.family, spec.num_parameters(), weights, spec.max_context, missing, kind)
