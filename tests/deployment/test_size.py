"""Sizes read as people write them, and are written so that they read back the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from armillary.deployment import Size, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("17", 17), (17, 17), ("1k", 1024), ("1KB", 1000), ("512MiB", 512 * 2**20), ("2 GB", 2 * 10**9),
     ("1.5 GiB", 3 * 2**29), (" 3 t ", 3 * 2**40)],
)  # fmt: skip
def test_reads(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", -1, "1 XB", "1e9", True, None, 1.5, "1 2"])
def test_refuses(text: object) -> None:
    with pytest.raises(ValueError, match="512MiB"):
        parse_size(text)


@given(st.integers(1, 2**60))
def test_what_is_written_reads_back(size: int) -> None:
    adapter = TypeAdapter(Size)
    assert adapter.validate_python(adapter.dump_python(size)) == size


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (512, "512 B"), (1536, "1.5 KiB"), (1023 * 2**20, "1023 MiB"), (2**34, "16 GiB")]
)
def test_shows(size: int, text: str) -> None:
    assert format_size(size) == text
