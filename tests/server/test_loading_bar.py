"""The bar while weights are read: of loads that take longer than a moment, and gone when they end."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from armillary.deployment import EngineSettings, ModelSettings
from armillary.runtime.stopwatch import Stopwatch
from armillary.server import loading_bar
from armillary.server.keeper import Wanted


def load(monkeypatch: pytest.MonkeyPatch, seconds: float, error: Exception | None = None) -> tuple[str, list[Any]]:
    """What a load of so many seconds draws, and what was told of it to others."""
    now, told, drawn = [0.0], [], StringIO()
    monkeypatch.setattr(loading_bar, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def build(wanted: Wanted) -> Any:
        wanted.on_plan(SimpleNamespace(weights=4000))  # type: ignore[arg-type]
        for _ in range(4):
            now[0] += seconds / 4
            wanted.on_bytes(1000)
        if error is not None:
            raise error
        return "engine"

    wanted = Wanted(ModelSettings(), EngineSettings(), Stopwatch("test"), told.append, told.append, 0, None)
    console = Console(file=drawn, force_terminal=True, width=100)
    built = loading_bar.with_bar(build, console)
    if error is None:
        assert built(wanted) == "engine"
    else:
        with pytest.raises(type(error)):
            built(wanted)
    return drawn.getvalue(), told


def test_a_load_that_takes_seconds_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, told = load(monkeypatch, 4.0)
    assert "weights of isles" in drawn and "4.0/4.0 kB" in drawn
    assert [each for each in told if isinstance(each, int)] == [1000] * 4 and told[0].weights == 4000


def test_a_quick_load_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, 0.5)[0] == ""


def test_a_load_that_fails_takes_its_bar_away(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, _ = load(monkeypatch, 4.0, MemoryError("no room"))
    assert drawn.endswith("\x1b[?25h\r\x1b[1A\x1b[2K"), "the cursor is back, and the line is gone"
