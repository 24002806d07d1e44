"""Laps add up to the time that passed, whoever books them."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from armillary.runtime.stopwatch import Stopwatch, process_began


def test_laps_leave_nothing_out() -> None:
    seen: list[str] = []
    watch = Stopwatch("one", on_lap=seen.append)
    for name in ("two", "three", "two"):
        assert watch.current is not None
        watch.begin(name)
    watch.end()
    assert watch.current is None and seen == ["two", "three", "two"]
    assert list(watch.laps) == ["one", "two", "three"]
    assert sum(watch.laps.values()) == pytest.approx(watch.total)


@pytest.mark.parametrize("name", [None, "model"])
def test_a_part_fits_without_a_gap(name: str | None) -> None:
    watch = Stopwatch("before", time.monotonic() - 5)
    part = watch.part("torch")
    part.begin("weights")
    part.end()
    watch.include(part, then="after", name=name)
    watch.end()
    expected = ["torch", "weights"] if name is None else ["model"]
    assert list(watch.laps) == ["before", *expected, "after"]
    assert sum(watch.laps.values()) == pytest.approx(watch.total)
    assert watch.total >= 5


def test_the_beginning_of_a_process_lies_between_its_start_and_its_first_line() -> None:
    """As exact as the system's clock tick, of which there are two: one here and one there."""
    code = (
        "import time; at = time.monotonic(); from armillary.runtime.stopwatch import process_began as b; print(at, b())"
    )
    before = time.monotonic()
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    first_line, began = map(float, told.split())
    assert before - 0.03 <= began <= first_line
    assert process_began() < before
