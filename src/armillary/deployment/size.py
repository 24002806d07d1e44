"""Sizes in bytes, as people write them: 512MiB, 2 GB, 1073741824."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer

_UNITS = {
    "": 1, "b": 1,
    "k": 1024, "kb": 1000, "kib": 1024,
    "m": 1024**2, "mb": 1000**2, "mib": 1024**2,
    "g": 1024**3, "gb": 1000**3, "gib": 1024**3,
    "t": 1024**4, "tb": 1000**4, "tib": 1024**4,
}  # fmt: skip
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_size(value: object) -> int:
    """Read a size.

    Args:
        value: an integer (bytes), or text such as `512MiB`, `2GB`, `1.5 GiB`. `K`, `M`, `G` and `T` alone
            count in powers of 1024, as they do for most tools that print memory.

    Returns: bytes.

    Raises:
        ValueError: what was given and what would work.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := _PATTERN.fullmatch(value)):
        unit = _UNITS.get(match[2].lower())
        if unit is not None:
            return int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    raise ValueError("must be a number of bytes, or a number with a unit such as 512MiB or 2GB")


def format_size(size: float) -> str:
    """Write a size with a unit that keeps one to four digits before the point: 1.5 GiB, 20 MiB, 512 B."""
    for unit, name in ((1024**4, "TiB"), (1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if abs(size) >= unit:
            return f"{size / unit:.3g} {name}" if abs(size) < 1000 * unit else f"{size / unit:.0f} {name}"
    return f"{size:.0f} B"


def _exact(size: int) -> int | str:
    """The shortest text that `parse_size` reads back as the same number."""
    for unit, name in ((1024**4, "TiB"), (1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit}{name}"
    return size


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=1), PlainSerializer(_exact)]
"""A pydantic field type: bytes, given as a number or as text with a unit, written back exactly."""
