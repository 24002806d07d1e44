"""What a run sends, and what it must remember of the answers: later turns of a conversation repeat them."""

from __future__ import annotations

from typing import Any

from armillary.measure.prompts import Calibration, Prompts
from armillary.measure.target import Target
from armillary.measure.workload import Workload


class Scripts:
    """The bodies to send: those that can be are made beforehand, since making one takes longer than sending it."""

    def __init__(self, workload: Workload, target: Target, calibration: Calibration) -> None:
        self._workload, self._target = workload, target
        self._prompts = Prompts(workload, calibration, target.seed)
        self._before = workload.columns.turn_before().tolist()
        self._awaited = {before for row, before in enumerate(self._before) if self._waits(row)}
        """Rows whose answer the next turn repeats."""
        self._said: dict[int, list[str]] = {}
        self._bodies = {row: self._make(row) for row in range(len(workload)) if not self._waits(row)}

    def body(self, row: int) -> dict[str, Any]:
        """The body of a row's request. The turn before must have ended."""
        return self._bodies.pop(row) if row in self._bodies else self._make(row)

    def listener(self, row: int) -> list[str] | None:
        """Where the answer's text is to be kept, if the next turn repeats it."""
        return [] if row in self._awaited else None

    def ended(self, row: int, heard: list[str] | None) -> None:
        """Keep what `listener` gave, now that the answer is complete."""
        if heard is not None:
            self._said[row] = [*self._spoken(row), self._prompts.text(row), "".join(heard)]
        self._said.pop(self._before[row], None)  # which nobody repeats any more

    def _waits(self, row: int) -> bool:
        return self._target.vocab_size is None and self._prompts.history(row) > 0

    def _spoken(self, row: int) -> list[str]:
        return self._prompts.spoken(row, self._said.get(self._before[row], ())) if self._waits(row) else []

    def _make(self, row: int) -> dict[str, Any]:
        item = self._workload.items[row]
        if self._target.vocab_size is not None:
            return self._target.body(item, self._prompts.ids(row, self._target.vocab_size))
        if item.token_ids is not None and item.prompt is None and self._target.endpoint == "completions":
            return self._target.body(item, list(item.token_ids))
        return self._target.body(item, self._prompts.text(row), self._spoken(row))
