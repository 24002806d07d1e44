"""A YAML document that remembers on which line each key stands, and refuses what YAML would let pass silently."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from armillary.errors import ArmillaryError, Code

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A parsed file.

    Attributes:
        path: where it was read from.
        content: the top-level mapping.
        lines: key path -> line number, from 1.
    """

    path: Path
    content: dict[str, Any]
    lines: dict[KeyPath, int]

    def place(self, key: KeyPath) -> str:
        """`file:line` of a key, or of the nearest enclosing one that the file contains."""
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.path}:{self.lines[key]}" if key in self.lines else str(self.path)


def read(path: Path) -> Document:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ArmillaryError: INVALID_DEPLOYMENT where the file is missing, is not YAML, repeats a key, or holds
            something other than a mapping; the message names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _invalid(f"{path}: must be an existing file, so check the spelling or the current folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(f"{path}: must be a readable text file, but reading it failed: {error}") from error
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return Document(path, {}, {})
        if not isinstance(root, yaml.MappingNode):
            raise _invalid(f"{path}:1: must hold keys and values (models:, engine:, server:), given {_shape(root)}")
        lines: dict[KeyPath, int] = {}
        _index(loader, root, (), lines, path)
        return Document(path, loader.construct_document(root), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise _invalid(f"{where}: must be YAML, but {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise _invalid(f"{path}: must be YAML, but {error}") from None
    finally:
        loader.dispose()


def _index(loader: yaml.SafeLoader, node: yaml.Node, at: KeyPath, lines: dict[KeyPath, int], path: Path) -> None:
    """Record the line of every key below `node`, and refuse a key that stands twice."""
    if isinstance(node, yaml.MappingNode):
        for key_node, value in node.value:
            name = loader.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(name, Hashable) or not isinstance(name, str):
                raise _invalid(f"{path}:{line}: a key must be a word, given {name!r}")
            key = (*at, name)
            if key in lines:
                raise _invalid(f"{path}:{line}: {dotted(key)} stands twice (first on line {lines[key]}); keep one")
            lines[key] = line
            _index(loader, value, key, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            key = (*at, index)
            lines[key] = value.start_mark.line + 1
            _index(loader, value, key, lines, path)


def dotted(key: KeyPath) -> str:
    """A key path as people write it: engine.kv_blocks, models[0].path."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _shape(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def _invalid(message: str) -> ArmillaryError:
    return ArmillaryError(Code.INVALID_DEPLOYMENT, message)
