"""The core imports the standard library and nothing else, and of that nothing that waits, reads or tells the time."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "armillary"
FORBIDDEN = {
    "time", "datetime", "threading", "_thread", "multiprocessing", "concurrent", "asyncio", "queue", "signal",
    "io", "os", "pathlib", "socket", "ssl", "subprocess", "tempfile", "shutil", "random", "secrets", "uuid",
}  # fmt: skip
CORE = sorted((SOURCE / "core").glob("*.py")) + [SOURCE / "errors.py"]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_core_imports_only_itself_and_the_pure_part_of_the_standard_library(path: Path) -> None:
    for module in imports(path):
        top = module.split(".")[0]
        if top == "armillary":
            assert module.startswith(("armillary.core", "armillary.errors")), module
        else:
            assert top in sys.stdlib_module_names, module
            assert top not in FORBIDDEN, module
    names = {node.id for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)}
    assert not names & {"open", "print", "input", "exec", "eval", "__import__"}


def test_every_folder_of_the_package_is_a_package() -> None:
    """A folder without __init__.py is invisible to the layer contracts."""
    folders = {path.parent for path in SOURCE.rglob("*.py")}
    assert {str(folder.relative_to(SOURCE)) for folder in folders if not (folder / "__init__.py").is_file()} == set()


def test_files_stay_readable() -> None:
    long = {str(path.relative_to(SOURCE)): count for path in SOURCE.rglob("*.py")
            if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400}  # fmt: skip
    assert long == {}, "past 400 lines a file is two concepts"
