"""Where results are to be written, looked at before the work that they are of, and written as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TextIO

from armillary.errors import ArmillaryError, Code


@contextmanager
def written(path: Path) -> Iterator[TextIO]:
    """A text file that takes the place of `path`, or of what that links to, once all of it is written.

    Raises ArmillaryError: as `check_file`.
    """
    check_file(path)
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def check_file(path: Path) -> None:
    """Refuse a folder where a file is to be written, and a device, which would be replaced by one.

    Raises ArmillaryError: INVALID_REQUEST.
    """
    if path.exists() and not path.is_file():
        kind = "folder" if path.is_dir() else "device or a pipe"
        raise ArmillaryError(Code.INVALID_REQUEST, f"a file must have a name, given {str(path)!r}, which is a {kind}")


def check_place(path: Path | None, name: str) -> None:
    """Refuse a file that cannot be written; None is none.

    Args:
        name: of the option that names it.

    Raises ArmillaryError: INVALID_REQUEST.
    """
    if path is not None:
        check_file(path)
        if not _writable(path.parent):
            raise ArmillaryError(
                Code.INVALID_REQUEST, f"{name} must be in a folder that can be written into, given {str(path)!r}", name
            )


def check_folder(path: Path, name: str) -> None:
    """Refuse a folder that cannot be made or written into.

    Args:
        name: of the option that names it.

    Raises ArmillaryError: INVALID_REQUEST.
    """
    if not _writable(path):
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"{name} must be a folder that can be written into, given {str(path)!r}", name
        )


def _writable(folder: Path) -> bool:
    """Whether it can be written into, or where it is not there yet, be made."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return False
    try:
        # Not every file system that grants it to this user takes files: /proc and what is mounted for reading do not.
        with TemporaryFile(dir=there):
            return True
    except OSError:
        return False
