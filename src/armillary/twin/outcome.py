"""What became of simulated requests: one number of each kind for each, and no object."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

from armillary.core.request import FinishReason

FINISHES: tuple[str, ...] = ("", *FinishReason, "refused")
"""What the numbers of `Outcomes.finish` stand for; 0 is a request that had not ended."""

Column = NDArray[np.float64]
Counts = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Columns over the requests, in the order of the workload. Times are seconds from its start.

    Attributes:
        due_s: when the client wanted it sent.
        first_s, last_s: when its first and its last token was known; nan where there was none.
        prompt_tokens, output_tokens, cached_tokens: in the prompt, generated, and of the prompt those that the prefix
            cache held.
        finish: places in `FINISHES`.
        replica: the number of the replica that served it; -1 where none did.
    """

    due_s: Column
    first_s: Column
    last_s: Column
    prompt_tokens: Counts
    output_tokens: Counts
    cached_tokens: Counts
    finish: NDArray[np.int8]
    replica: Counts

    def __len__(self) -> int:
        return len(self.due_s)

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Which requests were answered in full."""
        return np.isin(self.finish, [FINISHES.index("length"), FINISHES.index("stop")])

    @property
    def ttft_s(self) -> Column:
        """Time to first token."""
        return self.first_s - self.due_s

    @property
    def e2e_s(self) -> Column:
        """Time to the end of the answer."""
        return self.last_s - self.due_s

    @property
    def tpot_s(self) -> Column:
        """Mean time per output token after the first; nan below two tokens."""
        gaps = np.where(self.output_tokens > 1, self.output_tokens - 1.0, nan)
        return (self.last_s - self.first_s) / gaps


class Outcome:
    """Fills the columns while requests come and go, in any order."""

    def __init__(self) -> None:
        self._due, self._first, self._last = array("d"), array("d"), array("d")
        self._prompt, self._output, self._cached = array("i"), array("i"), array("i")
        self._finish, self._replica = array("b"), array("i")

    def submitted(self, row: int, due: float, prompt_tokens: int, replica: int) -> None:
        while len(self._due) <= row:  # requests need not be submitted in the order of the workload
            for times in (self._due, self._first, self._last):
                times.append(nan)
            for counts in (self._prompt, self._output, self._cached, self._finish):
                counts.append(0)
            self._replica.append(-1)
        self._due[row] = due
        self._prompt[row] = prompt_tokens
        self._replica[row] = replica

    def began(self, row: int, at: float, cached: int) -> None:
        """Its first token is known."""
        self._first[row] = at
        self._cached[row] = cached

    def ended(self, row: int, at: float, output_tokens: int, finish: str) -> None:
        self._last[row] = at
        self._output[row] = output_tokens
        self._finish[row] = FINISHES.index(finish)

    def columns(self) -> Outcomes:
        """What has been noted, without a copy: nothing may be noted after it."""
        times = [np.frombuffer(column, dtype=np.float64) for column in (self._due, self._first, self._last)]
        counts = [np.frombuffer(column, dtype=np.int32) for column in (self._prompt, self._output, self._cached)]
        return Outcomes(
            due_s=times[0],
            first_s=times[1],
            last_s=times[2],
            prompt_tokens=counts[0],
            output_tokens=counts[1],
            cached_tokens=counts[2],
            finish=np.frombuffer(self._finish, dtype=np.int8),
            replica=np.frombuffer(self._replica, dtype=np.int32),
        )
