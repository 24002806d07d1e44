"""The core imports the standard library, and of that only what neither waits, nor reads, nor guesses."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import armillary.core

ALLOWED = {
    "__future__", "array", "collections", "collections.abc", "copy", "dataclasses", "enum", "hashlib", "heapq",
    "itertools", "json", "math", "struct", "typing",
}  # fmt: skip
FORBIDDEN_CALLS = {"open", "input", "print", "exec", "eval", "__import__", "breakpoint", "hash", "id"}
"""`hash` of strings differs between processes, and `id` between runs: neither may reach a decision."""
FILES = sorted(Path(armillary.core.__file__).parent.glob("**/*.py"))


def test_there_is_a_core() -> None:
    assert {"scheduler.py", "engine.py", "journal.py", "order.py"} <= {file.name for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_core_is_pure(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"{file.name}:{node.lineno} calls {node.func.id}"
        elif isinstance(node, ast.Assert):
            raise AssertionError(f"{file.name}:{node.lineno}: no assert where a client may be the cause")
        for name in names:
            assert name in ALLOWED or name == "armillary.errors" or name.startswith("armillary.core."), (
                file.name,
                name,
            )


def test_the_scheduler_stays_readable() -> None:
    for file in FILES:
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 400, f"{file.name} has become two concepts"
