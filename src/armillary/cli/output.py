"""How results appear: a table for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from armillary.measure.plain import plain


def console(stderr: bool = False) -> Console:
    """A console for tables (standard output) or for progress and remarks (standard error)."""
    return Console(stderr=stderr, highlight=False)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str | None = None
) -> None:
    """Print rows under columns; cells that look like numbers are set to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(cells) and all(row[index][:1].isdigit() or row[index] in {"", "-", "–"} for row in cells)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    console().print(table, markup=False)


def print_json(value: Any) -> None:
    """Print a value as indented JSON; dataclasses become objects, and numbers that JSON lacks become null."""
    json.dump(plain(value), sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")
