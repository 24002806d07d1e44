"""Where results go: looked at first, written whole or not at all, and in words that every reader of JSON knows."""

from __future__ import annotations

import json
from math import inf, nan
from pathlib import Path

import pytest

from armillary.errors import ArmillaryError
from armillary.measure.intervals import Interval
from armillary.measure.place import check_place, written
from armillary.measure.plain import plain


def test_what_cannot_be_written_whole_leaves_nothing_behind(tmp_path: Path) -> None:
    target, link = tmp_path / "there.txt", tmp_path / "link.txt"
    link.symlink_to(target)
    with pytest.raises(OSError, match="full"), written(link) as file:
        file.write("half")
        raise OSError("full")
    assert list(tmp_path.iterdir()) == [link]
    with written(link) as file:
        file.write("whole")
    assert link.is_symlink() and target.read_text() == "whole"


def test_places_that_no_file_can_take_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, Path("/dev/null"), tmp_path / "file" / "below"):
        with pytest.raises(ArmillaryError, match="must"):
            check_place(path, "html_path")
    if Path("/proc/self").exists():  # says that it may be written into, to some users, and takes nothing
        with pytest.raises(ArmillaryError, match="can be written into"):
            check_place(Path("/proc/file"), "out")
    for path in (None, tmp_path / "file", tmp_path / "new" / "folder" / "file"):
        check_place(path, "html_path")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file"], "looking leaves nothing behind"


def test_numbers_that_json_lacks_are_null() -> None:
    told = plain({"found": [Interval(1.0, -inf, inf), nan, (2, "x")], "path": Path("a")})
    assert told == {
        "found": [{"value": 1.0, "low": None, "high": None, "confidence": 0.95}, None, [2, "x"]],
        "path": "a",
    }
    json.dumps(told, allow_nan=False)
