"""From the name of a model to the folder that holds it: bundled, on disk, or on the hub."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import NoReturn

from armillary.deployment.settings import BUNDLED
from armillary.errors import ArmillaryError, Code
from armillary.models.encoder_config import read_model
from armillary.models.encoder_spec import EncoderSpec
from armillary.models.pooling import MODULES, modules
from armillary.models.spec import ModelSpec

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WANTED = ["*.safetensors", "*.json", "*.jinja"]
_UNWANTED = ["*/*", "consolidated*", "training_args*"]
_POOLING = ["*_Pooling/config.json"]
"""Of the folders in a folder, only the one in which sentence-transformers keeps how vectors are made."""


def bundled_folder() -> Path:
    """Where the bundled model lies."""
    return Path(__file__).parents[1] / "bundled" / BUNDLED


def locate(name: str) -> Path:
    """The folder of a model in Hugging Face layout.

    Args:
        name: `isles` for the bundled model (`./isles` for a folder of that name), a folder, or a hub id. A hub
            id whose files are complete in the local cache is not looked up again; otherwise it is downloaded.

    Raises:
        ArmillaryError: MODEL_NOT_FOUND, UNAUTHORIZED (gated), or UNREACHABLE (no network), with what to do.
    """
    return _known(name) or _cached(name) or _downloaded(name)


def is_here(name: str) -> bool:
    """Whether a model lies on this machine, complete, so that `locate` downloads nothing. False where there is none."""
    try:
        return _known(name) is not None or _cached(name) is not None
    except ArmillaryError:
        return False


def locate_config(name: str) -> ModelSpec | EncoderSpec:
    """The description of a model. Of one that is not on this machine, only the small config files are fetched.

    Raises: as `locate`, and as `read_model`.
    """
    folder = _known(name) or _cached(name) or _downloaded(name, ["config.json", "generation_config.json"])
    return read_model(folder)


def _known(name: str) -> Path | None:
    """The bundled model or a folder; None for a hub id."""
    if name == BUNDLED:
        return bundled_folder()
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            _missing(name, "that folder holds no config.json")
        return folder
    if folder.exists():
        _missing(name, "that is a file; name the folder it lies in")
    if not _HUB_ID.fullmatch(name):
        _missing(name, "there is no such folder")
    return None


def _cached(name: str) -> Path | None:
    """The local copy of a hub id, if every file that loading needs is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, ValueError, OSError):
        return None
    index = folder / "model.safetensors.index.json"
    try:
        needed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.is_file() else set()
    except (ValueError, KeyError, AttributeError, OSError):
        return None
    if _lacks_pooling(folder):
        return None
    needed |= {"config.json", "tokenizer.json"} if needed else {"config.json", "tokenizer.json", "model.safetensors"}
    return folder if all((folder / str(file)).is_file() for file in needed) else None


def _lacks_pooling(folder: Path) -> bool:
    """Whether modules.json names a folder that says how vectors are made, and it is not there."""
    if not (folder / MODULES).is_file():
        return False
    named = [str(module.get("path")) for module in modules(folder) if str(module.get("type")).endswith("Pooling")]
    return not all((folder / name / "config.json").is_file() for name in named)


def _downloaded(name: str, wanted: list[str] | None = None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        _unreachable(name, "HF_HUB_OFFLINE is set")
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted or _WANTED, ignore_patterns=_UNWANTED))
        if _lacks_pooling(folder):
            snapshot_download(name, allow_patterns=_POOLING)
        return folder
    except GatedRepoError:
        raise ArmillaryError(
            Code.UNAUTHORIZED,
            f"access to the model {name} must be granted by its owner: ask for it on its page on the hub, then set "
            "HF_TOKEN to a token of your account",
            "model",
        ) from None
    except RepositoryNotFoundError:
        _missing(name, "there is no such folder here and no such model on the hub, or it is private and needs HF_TOKEN")
    except Exception as error:  # the hub's client raises its own, httpx's and the operating system's errors
        _unreachable(name, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no answer'}")


def _missing(name: str, why: str) -> NoReturn:
    raise ArmillaryError(
        Code.MODEL_NOT_FOUND,
        f"model must be a folder in Hugging Face layout, a hub id such as Qwen/Qwen3-0.6B, or `{BUNDLED}`, given "
        f"{name!r}: {why}",
        "model",
    )


def _unreachable(name: str, why: str) -> NoReturn:
    raise ArmillaryError(
        Code.UNREACHABLE,
        f"the model {name} is not complete on this machine, and downloading it failed ({why}). Without a network, "
        f"copy its folder here from a machine that has one and give its path, or serve `{BUNDLED}`, which needs none",
        "model",
    )
