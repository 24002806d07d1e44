"""Journals as files: the lives of engines that they hold, line by line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from armillary.core.journal import expand
from armillary.errors import ArmillaryError, Code

Record = dict[str, Any]
"""A line of a journal."""
BEGINS = '{"scheduler":'
"""How the first line of a life does."""


@dataclass
class Life:
    """One engine's journal, from its first line on.

    Attributes:
        first: the number of its first line in the file, from 1.
        unfinished: whether a last line was left out because it breaks off.
    """

    first: int
    lines: list[str] = field(default_factory=list)
    unfinished: bool = False


def read_journal(path: str | Path) -> list[Life]:
    """The lives that a journal's file holds: one for each time that an engine began to write it.

    Steps taken in one (a leap) have a line each, as if they had been taken one by one; lines are counted so.

    Raises:
        ArmillaryError: NOT_FOUND where it cannot be read; INVALID_REQUEST where it is no journal.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArmillaryError(
            Code.NOT_FOUND, f"a journal must be a readable text file, given {str(path)!r}: {error}", "journal"
        ) from error
    lives: list[Life] = []
    for number, line in enumerate(_expanded(text), start=1):
        if line.startswith(BEGINS):
            lives.append(Life(number))
        elif not lives and line:
            refuse(number, "a journal begins with the scheduler's configuration")
        if line:
            lives[-1].lines.append(line)
    if not lives:
        refuse(1, "the file is empty")
    if not text.endswith("\n"):
        lives[-1].lines.pop()
        lives[-1].unfinished = True
    if not (found := [life for life in lives if life.lines]):
        refuse(1, "it breaks off")
    return found


def _expanded(text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            yield from expand(line)
        except (KeyError, TypeError, ValueError) as error:
            refuse(number, f"{type(error).__name__}: {error}")


def read_lines(lines: Iterable[str], first: int = 1) -> list[Record]:
    """The lines of a journal as records.

    Raises:
        ArmillaryError: INVALID_REQUEST, naming the line that is none.
    """
    return [_record(line, number) for number, line in enumerate(lines, start=first)]


def _record(line: str, number: int) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        refuse(number, str(error))
    if not isinstance(record, dict):
        refuse(number, f"a line must be a JSON object, given {type(record).__name__}")
    return record


def refuse(number: int, why: str) -> NoReturn:
    """Raise because a line is none that an engine wrote."""
    raise ArmillaryError(
        Code.INVALID_REQUEST,
        f"a journal must be one that an engine wrote; line {number} cannot be read: {why}",
        "journal",
    )
