"""Where results are to be written, looked at before the work that they are of."""

from __future__ import annotations

import os
from pathlib import Path

from armillary.errors import ArmillaryError, Code


def refuse_folder(path: Path) -> None:
    """Refuse a folder where a file is to be written.

    Raises ArmillaryError: INVALID_REQUEST.
    """
    if path.is_dir():
        raise ArmillaryError(Code.INVALID_REQUEST, f"a file must have a name, given {str(path)!r}, which is a folder")


def check_folder(path: Path, name: str) -> None:
    """Refuse a folder that cannot be made or written into.

    Args:
        name: of the option that names it.

    Raises ArmillaryError: INVALID_REQUEST.
    """
    there = path.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"{name} must be a folder that can be written into, given {str(path)!r}", name
        )
