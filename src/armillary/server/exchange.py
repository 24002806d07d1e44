"""One HTTP exchange, known to everything that runs on its behalf: log lines, tallies and spans say whose they are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from armillary.server.admission import Caller
    from armillary.server.tally import Tally


@dataclass(slots=True)
class Exchange:
    """A request from its first line to the end of its response. `arrived` is monotonic, `created` Unix time."""

    request_id: str
    headers: Mapping[str, str]
    """By name, in small letters."""
    arrived: float = field(default_factory=time.monotonic)
    created: float = field(default_factory=time.time)
    caller: Caller | None = None
    """Who asks; None for paths that ask for no key."""
    tally: Tally | None = None
    """What is counted about it, where it is about a model."""

    @property
    def owner(self) -> str:
        """By which name what it computes is counted: that of its key."""
        return "" if self.caller is None else self.caller.name


current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)
"""The exchange that the running task belongs to. Threads that `asyncio.to_thread` starts know it too."""
