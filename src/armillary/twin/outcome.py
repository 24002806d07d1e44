"""What became of simulated requests: one number of each kind for each, and no object."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

from armillary.core.request import FinishReason
from armillary.measure.outcomes import Outcomes
from armillary.measure.workload import WorkItem

FINISHES: tuple[str, ...] = ("", *FinishReason, "refused")
"""What the numbers of `SimulatedOutcomes.finish` stand for; 0 is a request that had not ended."""


@dataclass(frozen=True, kw_only=True)
class SimulatedOutcomes(Outcomes):
    """The columns that a measured run has too, and what only a simulation knows.

    Attributes:
        finish: places in `FINISHES`.
        replica: the number of the replica that served it; -1 where none did.
    """

    finish: NDArray[np.int8]
    replica: NDArray[np.int64]


class Recorder:
    """Fills the columns while requests come and go, in any order."""

    def __init__(self) -> None:
        self._due, self._first, self._end, self._deadline = array("d"), array("d"), array("d"), array("d")
        self._prompt, self._output, self._cached = array("q"), array("q"), array("q")
        self._replica = array("q")
        self._class = array("q")
        self._classes: dict[str, int] = {}
        self.last = 0.0
        """When the last answer had come."""
        self._finish = array("b")

    def submitted(self, row: int, due: float, item: WorkItem, replica: int) -> None:
        while len(self._due) <= row:  # requests need not be submitted in the order of the workload
            for times in (self._due, self._first, self._end, self._deadline):
                times.append(nan)
            for counts in (self._prompt, self._output, self._cached, self._finish):
                counts.append(0)
            self._replica.append(-1)
            self._class.append(-1)
        self._due[row] = due
        self._prompt[row] = item.prompt_tokens
        self._replica[row] = replica
        if item.slo_class is not None:
            self._class[row] = self._classes.setdefault(item.slo_class, len(self._classes))
        if item.deadline is not None:
            self._deadline[row] = item.deadline

    def moved(self, row: int, replica: int) -> None:
        """Another replica serves it."""
        self._replica[row] = replica

    def began(self, row: int, at: float, cached: int) -> None:
        """Its first token is known."""
        self._first[row] = at
        self._cached[row] = cached

    def ended(self, row: int, at: float, output_tokens: int, finish: str) -> float:
        """Its last token is known at the engine. Returns when it is at the client, who gets none before the first."""
        first = self._first[row]
        self._end[row] = end = first if first > at else at
        self.last = max(self.last, end)
        self._output[row] = output_tokens
        self._finish[row] = FINISHES.index(finish)
        return end

    def times(self, row: int) -> tuple[float, float]:
        """Time to first token, and mean time per further token (0 where there is none), of a request that ended."""
        gaps = self._output[row] - 1
        first = self._first[row]
        return first - self._due[row], (self._end[row] - first) / gaps if gaps > 0 else 0.0

    def columns(self) -> SimulatedOutcomes:
        """What has been noted, without a copy: nothing may be noted after it."""

        def times(column: array[float]) -> NDArray[np.float64]:
            return np.frombuffer(column, dtype=np.float64)

        def counts(column: array[int]) -> NDArray[np.int64]:
            return np.frombuffer(column, dtype=np.int64)

        finish = np.frombuffer(self._finish, dtype=np.int8)
        return SimulatedOutcomes(
            due=times(self._due),
            first=times(self._first),
            end=times(self._end),
            prompt_tokens=counts(self._prompt),
            output_tokens=counts(self._output),
            cached_tokens=counts(self._cached),
            ok=np.isin(finish, [FINISHES.index("length"), FINISHES.index("stop")]),
            deadline=times(self._deadline),
            slo_class=counts(self._class),
            slo_classes=tuple(self._classes),
            finish=finish,
            replica=counts(self._replica),
        )
