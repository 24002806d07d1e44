"""What became of the requests of a run, as columns: a million of them cost a few dozen bytes each.

Bench makes them from its records, the simulator writes them as it goes; service levels, steadiness and the operational
laws are judged on them alone, so a simulated and a measured run are judged alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from armillary.errors import ArmillaryError, Code
from armillary.measure.record import RequestRecord

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """One row a request, in the order in which the requests were due. Times are seconds on one clock.

    Attributes:
        due: when the request should have been sent.
        first: when its first token was there; NaN where none came.
        end: when its last token was there, or it was given up; NaN where it never ended.
        prompt_tokens: of the prompt, cached ones included; 0 where unknown.
        output_tokens: generated.
        cached_tokens: prompt tokens that were not computed.
        ok: whether it ended as it should; the others have no latencies.
        deadline: seconds after `due` by which the end was wanted; NaN for none.
        slo_class: the index in `slo_classes` of its service-level class; -1 for none.
        slo_classes: names of the classes.
        gaps: seconds between tokens of successful requests, row after row; None where the run did not keep them.
        gap_counts: how many of `gaps` belong to each row.
    """

    due: Floats
    first: Floats
    end: Floats
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    cached_tokens: NDArray[np.int64]
    ok: NDArray[np.bool_]
    deadline: Floats | None = None
    slo_class: NDArray[np.int64] | None = None
    slo_classes: tuple[str, ...] = field(default=())
    gaps: Floats | None = None
    gap_counts: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.due)

    @staticmethod
    def of(records: Sequence[RequestRecord]) -> Outcomes:
        """The columns of `records`, in the order in which they were due."""
        rows = sorted(records, key=lambda record: record.due)
        slo_classes = tuple(sorted({record.slo_class for record in rows if record.slo_class is not None}))
        codes = {name: code for code, name in enumerate(slo_classes)}
        kept = [record.gaps if record.ok else [] for record in rows]
        return Outcomes(
            due=_floats(record.due for record in rows),
            first=_floats(record.first for record in rows),
            end=_floats(record.end for record in rows),
            prompt_tokens=np.array([record.prompt_tokens or 0 for record in rows], dtype=np.int64),
            output_tokens=np.array([record.output_tokens for record in rows], dtype=np.int64),
            cached_tokens=np.array([record.cached_tokens or 0 for record in rows], dtype=np.int64),
            ok=np.array([record.ok for record in rows], dtype=np.bool_),
            deadline=_floats(record.deadline for record in rows),
            slo_class=np.array([-1 if r.slo_class is None else codes[r.slo_class] for r in rows], dtype=np.int64),
            slo_classes=slo_classes,
            gaps=np.array([gap for gaps in kept for gap in gaps], dtype=np.float64),
            gap_counts=np.array([len(gaps) for gaps in kept], dtype=np.int64),
        )

    @property
    def ttft(self) -> Floats:
        """Seconds from due to the first token; NaN for requests that did not succeed."""
        return np.where(self.ok, self.first - self.due, np.nan)

    @property
    def e2e(self) -> Floats:
        """Seconds from due to the end; NaN for requests that did not succeed."""
        return np.where(self.ok, self.end - self.due, np.nan)

    @property
    def tpot(self) -> Floats:
        """Mean seconds per token after the first; NaN below two tokens and for requests that did not succeed."""
        many = self.ok & (self.output_tokens >= 2)
        return np.where(many, (self.end - self.first) / np.maximum(1, self.output_tokens - 1), np.nan)

    def gap_rows(self) -> NDArray[np.int64]:
        """The row that each of `gaps` belongs to."""
        if self.gap_counts is None:
            raise ArmillaryError(
                Code.INVALID_REQUEST, "itl must be judged on a run that kept its gaps, given one without"
            )
        return np.repeat(np.arange(len(self)), self.gap_counts)

    def select(self, kept: NDArray[np.bool_]) -> Outcomes:
        """The rows where `kept` is true."""
        return Outcomes(
            due=self.due[kept],
            first=self.first[kept],
            end=self.end[kept],
            prompt_tokens=self.prompt_tokens[kept],
            output_tokens=self.output_tokens[kept],
            cached_tokens=self.cached_tokens[kept],
            ok=self.ok[kept],
            deadline=None if self.deadline is None else self.deadline[kept],
            slo_class=None if self.slo_class is None else self.slo_class[kept],
            slo_classes=self.slo_classes,
            gaps=None if self.gaps is None else self.gaps[kept[self.gap_rows()]],
            gap_counts=None if self.gap_counts is None else self.gap_counts[kept],
        )

    def of_class(self, name: str) -> Outcomes:
        """The rows of one service-level class."""
        if self.slo_class is None or name not in self.slo_classes:
            return self.select(np.zeros(len(self), dtype=np.bool_))
        return self.select(self.slo_class == self.slo_classes.index(name))


def _floats(values: object) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)  # type: ignore[attr-defined]
