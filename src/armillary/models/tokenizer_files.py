"""What a model folder says about its tokenizer, read from the several files that may say it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary.errors import ArmillaryError, Code


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a folder says about its tokenizer. `definition` is the text of tokenizer.json."""

    definition: str
    config: dict[str, Any]
    eos: frozenset[int]
    template: str | dict[str, str] | None


def read_files(folder: Path) -> TokenizerFiles:
    """Read all that a folder says about its tokenizer."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ArmillaryError(
            Code.INVALID_CHECKPOINT,
            f"a model folder must have tokenizer.json, and {folder} has none; a slow tokenizer "
            "(tokenizer.model, vocab.txt) can be converted once with transformers' AutoTokenizer.save_pretrained",
        )
    config = _read_json(folder / "tokenizer_config.json")
    return TokenizerFiles(
        definition=_read_text(path),
        config={**_named_from_map(folder), **config},
        eos=_read_eos(folder),
        template=_read_template(folder, config),
    )


def _read_eos(folder: Path) -> frozenset[int]:
    """`eos_token_id` of generation_config.json, or of config.json where that says nothing."""
    for name in ("generation_config.json", "config.json"):
        listed = _read_json(folder / name).get("eos_token_id")
        if isinstance(listed, int):
            return frozenset({listed})
        if isinstance(listed, list) and listed:
            return frozenset(i for i in listed if isinstance(i, int))
    return frozenset()


def _named_from_map(folder: Path) -> dict[str, Any]:
    """special_tokens_map.json, which older folders have beside or instead of the entries in the config."""
    return {k: v for k, v in _read_json(folder / "special_tokens_map.json").items() if v is not None}


def _read_template(folder: Path, config: dict[str, Any]) -> str | dict[str, str] | None:
    """The chat template: files of their own before the entry in tokenizer_config.json, as transformers has it."""
    named = {path.stem: _read_text(path) for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    own = folder / "chat_template.jinja"
    if own.is_file():
        return {**named, "default": _read_text(own)} if named else _read_text(own)
    listed = config.get("chat_template")
    if listed is None:
        listed = _read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(listed, list):
        try:
            return {str(entry["name"]): str(entry["template"]) for entry in listed}
        except (TypeError, KeyError) as error:
            raise ArmillaryError(
                Code.INVALID_CHECKPOINT,
                f"chat_template in {folder / 'tokenizer_config.json'} must be a text or a list of entries with "
                "name and template",
            ) from error
    return listed if isinstance(listed, str) else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ArmillaryError(Code.INVALID_CHECKPOINT, f"{path} must be readable UTF-8 text: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(_read_text(path))
    except ValueError as error:
        raise ArmillaryError(Code.INVALID_CHECKPOINT, f"{path} must be valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ArmillaryError(Code.INVALID_CHECKPOINT, f"{path} must hold a JSON object")
    return content
