"""A bar on the terminal while a model's weights are read, where that takes longer than a moment."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from armillary.server.keeper import Build, Wanted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from armillary.runtime.load import LoadedEngine
    from armillary.runtime.memory_plan import MemoryPlan

MOMENT_S = 1.0
"""Shorter loads show nothing: drawing takes longer to import than the bundled model to load."""


def with_bar(build: Build, console: Console | None = None) -> Build:
    """The same builder of engines, with a bar from the moment on at which it has read weights for `MOMENT_S`.

    Args:
        console: draws it; None makes one of stderr.
    """

    def built(wanted: Wanted) -> LoadedEngine:
        bar = _Bar(wanted, console)
        try:
            return build(replace(wanted, on_plan=bar.begin, on_bytes=bar.advance))
        finally:
            bar.end()

    return built


class _Bar:
    """Called by one thread at a time."""

    def __init__(self, wanted: Wanted, console: Console | None) -> None:
        self._wanted, self._console = wanted, console
        self._total = self._read = 0
        self._began = 0.0
        self._drawn: Progress | None = None

    def begin(self, plan: MemoryPlan) -> None:
        self._wanted.on_plan(plan)
        self._total, self._began = plan.weights, time.monotonic()

    def advance(self, added: int) -> None:
        self._wanted.on_bytes(added)
        self._read += added
        if self._drawn is None and time.monotonic() - self._began >= MOMENT_S:
            self._drawn = self._draw()
        if self._drawn is not None:
            self._drawn.update(self._drawn.task_ids[0], completed=self._read)

    def end(self) -> None:
        if self._drawn is not None:
            self._drawn.stop()

    def _draw(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        progress = Progress(*columns, console=self._console or Console(stderr=True), transient=True)
        progress.add_task(f"weights of {self._wanted.model.served_name}", total=self._total)
        progress.start()
        return progress
