"""How a model's hidden states become one vector: from the files of sentence-transformers, where a folder has them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from armillary.errors import ArmillaryError, Code
from armillary.models.config import read_json
from armillary.models.encoder_spec import EncoderSpec
from armillary.models.spec import ModelSpec

Mode = Literal["mean", "last", "cls"]
"""The mean over all tokens, the last token, or the first."""
Kind = Literal["decoder", "encoder", "scorer"]
"""A decoder generates and embeds; an encoder embeds; a scorer (cross-encoder) scores pairs of texts."""

MODULES = "modules.json"
_MODES: dict[str, Mode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_cls_token": "cls",
}
_NAMED: dict[str, Mode] = {"mean": "mean", "lasttoken": "last", "cls": "cls"}


@dataclass(frozen=True, slots=True)
class PoolingSpec:
    """What vectors a model gives.

    Attributes:
        size: numbers in a vector.
        mode: how hidden states are pooled where a request does not say.
        modes: how they may be.
        normalize: whether vectors have length 1 where a request does not say.
        dimensions: the shorter lengths that vectors may be cut to, as config.json's `matryoshka_dimensions` lists
            them; None where it lists none, and any length may be asked for.
    """

    kind: Kind
    size: int
    mode: Mode = "mean"
    modes: tuple[Mode, ...] = ("mean", "last")
    normalize: bool = True
    dimensions: tuple[int, ...] | None = None


def read_pooling(folder: Path, spec: ModelSpec | EncoderSpec) -> PoolingSpec:
    """What the folder says about vectors: sentence-transformers' files first, then mean and length 1.

    Raises:
        ArmillaryError: UNSUPPORTED_MODEL where the files ask for what is not computed here, by name.
    """
    encoder = isinstance(spec, EncoderSpec)
    kind: Kind = "decoder"
    modes: tuple[Mode, ...] = ("mean", "last")
    if isinstance(spec, EncoderSpec):
        kind, modes = ("scorer" if spec.scores else "encoder"), ("mean", "cls", "last")
    file, normalize = _layout(folder)
    mode: Mode = "mean"
    if file is not None:
        mode = _mode(file)
        if mode not in modes:
            _refuse(f"{file}: the mode must be one of {', '.join(modes)} for a decoder, given {mode}", "pooling_mode")
    if encoder:
        _check_transformer(folder)
    listed = spec.config.get("matryoshka_dimensions")
    dimensions = tuple(sorted(int(size) for size in listed)) if isinstance(listed, list) else None
    return PoolingSpec(kind, spec.hidden_size, mode, modes, normalize, dimensions)


def trained_length(folder: Path) -> int | None:
    """Tokens that sentence-transformers cuts a text to, as the folder's makers chose; None where it says nothing."""
    length = (read_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    return length if isinstance(length, int) and not isinstance(length, bool) and length > 0 else None


def _layout(folder: Path) -> tuple[Path | None, bool]:
    """The file with the pooling mode, if there is one, and whether vectors are normalised."""
    path = folder / MODULES
    if not path.is_file():
        alone = folder / "1_Pooling" / "config.json"
        return (alone if alone.is_file() else None), True
    file, normalize = None, False
    for module in modules(folder):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Pooling":
            file = folder / str(module.get("path", "")) / "config.json"
            if Path(str(module.get("path", ""))).name != module.get("path") or not file.is_file():
                raise ArmillaryError(
                    Code.INVALID_CHECKPOINT,
                    f"{path} names {module.get('path')!r} for pooling, and that folder has no config.json here",
                    "model",
                )
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            _refuse(f"{path}: modules must be Transformer, Pooling and Normalize, given {kind!r}", "type")
    return file, normalize


def modules(folder: Path) -> list[dict[str, Any]]:
    """The entries of modules.json.

    Raises:
        ArmillaryError: INVALID_CHECKPOINT where it is no list of objects.
    """
    path = folder / MODULES
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArmillaryError(Code.INVALID_CHECKPOINT, f"{path} must be JSON, given {error}", "model") from error
    if not isinstance(found, list) or not all(isinstance(module, dict) for module in found):
        raise ArmillaryError(Code.INVALID_CHECKPOINT, f"{path} must hold a list of objects", "model")
    return found


def _mode(file: Path) -> Mode:
    config = read_json(file) or {}
    named = config.get("pooling_mode")
    if isinstance(named, str):
        if named not in _NAMED:
            _refuse(f"{file}: `pooling_mode` must be one of {', '.join(_NAMED)}, given {named!r}", "pooling_mode")
        return _NAMED[named]
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in _MODES:
        known = ", ".join(_MODES)
        _refuse(f"{file}: exactly one of {known} must be true, given {', '.join(chosen) or 'none'}", "pooling_mode")
    return _MODES[chosen[0]]


def _check_transformer(folder: Path) -> None:
    config = read_json(folder / "sentence_bert_config.json") or {}
    if config.get("do_lower_case"):
        _refuse("sentence_bert_config.json: `do_lower_case` must be false: tokenizer.json says what becomes of case",
                "do_lower_case")  # fmt: skip


def _refuse(message: str, param: str) -> NoReturn:
    raise ArmillaryError(Code.UNSUPPORTED_MODEL, message, param)
