"""Vectors from hidden states, for requests that want one and no text.

Such a request is scheduled, chunked, preempted and cancelled like any other; its `sampling` is a `PoolingParams`,
and the vector travels with the event that ends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as ReadOnlyList
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from armillary.core.step import Entry
from armillary.models.pooling import Mode

Vector = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PoolingParams:
    """What is wanted of a prompt.

    Attributes:
        mode: how hidden states after the last norm become one vector; `score` for a cross-encoder's score.
        normalize: whether the vector gets length 1 (after it was cut).
        dimensions: keep so many leading numbers; None keeps all.
        second: position at which the second text of a pair begins, for models that tell the two apart.
    """

    mode: Mode | Literal["score"]
    normalize: bool = True
    dimensions: int | None = None
    second: int | None = None

    @property
    def reuses_prefix(self) -> bool:
        """Whether cached blocks may stand in for computing: not where every position counts."""
        return self.mode == "last"


class Pools:
    """Sums of hidden states, kept from chunk to chunk; `forget` drops those of sequences that have ended.

    A sum is taken in float64, row after row, so that it is the same bits however the prompt was cut. A sequence
    that was preempted begins anew at position 0, and so does its sum.
    """

    def __init__(self) -> None:
        self._sums: dict[int, Sums] = {}

    def forget(self, uids: Iterable[int]) -> None:
        """Drop what is kept about sequences that have ended."""
        for uid in uids:
            self._sums.pop(uid, None)

    def take(
        self,
        hidden: Vector,
        entries: ReadOnlyList[Entry],
        rows: ReadOnlyList[int],
        failures: Mapping[int, str],
    ) -> dict[str, object] | None:
        """Take in a step's hidden states; returns request id -> vector for the prompts that it completes.

        Args:
            hidden: [T, width], the rows of an entry one after another.
            rows: first row of each entry.
        """
        found: dict[str, object] | None = None
        for index, entry in enumerate(entries):
            sequence = entry.sequence
            params = sequence.request.sampling
            if not isinstance(params, PoolingParams) or params.mode == "score" or index in failures:
                continue
            done = entry.start + entry.count == sequence.prompt_length
            pooled = self._pool(hidden[rows[index] : rows[index] + entry.count], entry, params.mode, done)
            if pooled is not None:
                found = found or {}
                found[sequence.request.id] = finished(pooled, params)
        return found

    def _pool(self, part: Vector, entry: Entry, mode: str, done: bool) -> Sums | None:
        """The pooled vector where the prompt is complete, else None."""
        uid = entry.sequence.uid
        if mode == "last":
            return part[-1].astype(np.float64) if done else None
        if mode == "cls":
            if entry.start == 0:
                self._sums[uid] = part[0].astype(np.float64)
            return self._sums.pop(uid) if done else None
        total = np.zeros(part.shape[1]) if entry.start == 0 else self._sums[uid]
        for row in part.astype(np.float64):
            total += row
        if done:
            self._sums.pop(uid, None)
            return total / entry.sequence.prompt_length
        self._sums[uid] = total
        return None


def finished(pooled: Sums, params: PoolingParams) -> Vector:
    """Cut, scale, and round to float32. A vector of zeros has no direction and stays as it is."""
    pooled = pooled[: params.dimensions]
    if params.normalize:
        length = float(np.sqrt(np.square(pooled).sum()))
        pooled = pooled / length if length > 0 else pooled
    return pooled.astype(np.float32)
