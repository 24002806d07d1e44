"""What other threads hand to the thread that owns an engine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from armillary.core.request import Request
from armillary.core.step import Event

OnEvents = Callable[[list[Event]], None]


@dataclass(slots=True)
class Submission:
    """A request that the engine has not seen yet, and who waits to hear whether it is accepted."""

    request: Request
    on_events: OnEvents
    future: Future[None]


class Call:
    """A function to run between two steps, and who waits for it."""

    __slots__ = ("_run", "future")

    def __init__(self, run: Callable[[], None], future: Future[Any]) -> None:
        self._run = run
        self.future = future

    def __call__(self) -> None:
        self._run()


class OpenRequest:
    """A request that was accepted and has choices still to end."""

    __slots__ = ("ended", "on_events", "request")

    def __init__(self, request: Request, on_events: OnEvents) -> None:
        self.request = request
        self.on_events: OnEvents | None = on_events
        """None once the callback has raised: nobody listens any more."""
        self.ended: set[int] = set()
