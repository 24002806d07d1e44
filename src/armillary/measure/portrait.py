"""A workload in figures."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from armillary.measure.statistics import quantile
from armillary.measure.workload import Workload


@dataclass(frozen=True)
class Lengths:
    """A column of lengths, in tokens."""

    mean: float
    p50: int
    p95: int
    largest: int

    @staticmethod
    def of(values: NDArray[np.int64]) -> Lengths:
        """The figures of `values`."""
        middle, high = (int(quantile(values.astype(np.float64), level)) for level in (0.5, 0.95))
        return Lengths(float(values.mean()), middle, high, int(values.max()))

    def __str__(self) -> str:
        return f"mean {self.mean:,.0f}, p50 {self.p50:,}, p95 {self.p95:,}, largest {self.largest:,}"


@dataclass(frozen=True)
class Portrait:
    """What a workload is like.

    Attributes:
        gap_cv: coefficient of variation of the gaps between conversations (1: like Poisson); None for a closed loop,
            or where all come at once.
        dispersion: variance over mean of the conversations that begin in a hundredth of the time (1: like Poisson at
            every scale).
        correlation: rank correlation of prompt and output lengths.
        shareable: share of all prompt tokens that were in a prompt before, or in the answer that their session repeats:
            the most that a prefix cache of any size can hold.
    """

    requests: int
    users: int | None
    duration_s: float
    rate: float | None
    gap_cv: float | None
    dispersion: float | None
    prompt: Lengths
    output: Lengths
    correlation: float
    conversations: int
    shareable: float
    slo_classes: dict[str, str]

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each figure."""
        found = [("requests", f"{self.requests:,} in {self.conversations:,} conversations")]
        if self.users is not None:
            found.append(("loop", f"closed, {self.users} users"))
        elif self.rate is None:
            found.append(("loop", "open, all at once"))
        else:
            found.append(("loop", f"open, {self.rate:.4g} requests/s over {self.duration_s:,.0f} s"))
        if self.gap_cv is not None:
            found.append(("variation of gaps", f"{self.gap_cv:.2f} (Poisson: 1)"))
        if self.dispersion is not None:
            found.append(("dispersion of counts", f"{self.dispersion:.2f} (Poisson: 1)"))
        found += [
            ("prompt tokens", str(self.prompt)),
            ("output tokens", str(self.output)),
            ("rank correlation of the two", f"{self.correlation:.2f}"),
            ("prompt tokens that a cache may hold", f"{self.shareable:.1%}"),
        ]
        return found + [(f"class {name}", level) for name, level in self.slo_classes.items()]


def portrait(workload: Workload) -> Portrait:
    """The figures of `workload`."""
    columns = workload.columns
    gap_cv = dispersion = None
    starts = columns.turn_before() < 0
    if columns.arrival is not None and workload.duration > 0 and starts.sum() > 1:
        gaps = np.diff(columns.arrival[starts])
        gap_cv = float(gaps.std() / gaps.mean()) if gaps.mean() > 0 else None
        counts = np.histogram(columns.arrival[starts], bins=100, range=(0.0, workload.duration))[0]
        dispersion = float(counts.var() / counts.mean())
    return Portrait(
        requests=len(workload),
        users=workload.users,
        duration_s=workload.duration,
        rate=workload.offered_rate,
        gap_cv=gap_cv,
        dispersion=dispersion,
        prompt=Lengths.of(columns.prompt_tokens),
        output=Lengths.of(columns.output_tokens),
        correlation=_rank_correlation(columns.prompt_tokens, columns.output_tokens),
        conversations=int(starts.sum()),
        shareable=_shareable(workload),
        slo_classes={name: str(slo) for name, slo in workload.slo_classes.items()},
    )


def _rank_correlation(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    ranks = [_ranks(values) for values in (a, b)]
    spread = ranks[0].std() * ranks[1].std()
    return float(((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())).mean() / spread) if spread > 0 else 0.0


def _ranks(values: NDArray[np.int64]) -> NDArray[np.float64]:
    """Ranks, equal values sharing theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])


def _shareable(workload: Workload) -> float:
    columns = workload.columns
    again = 0 if columns.history is None else int(columns.history.sum())
    if columns.run is not None and columns.run_tokens is not None and columns.shares is not None:
        # A run counts where a request before began with the same runs up to and including it.
        seen: dict[tuple[int, ...], int] = {}
        runs, tokens, shares = columns.run.tolist(), columns.run_tokens.tolist(), columns.shares.tolist()
        for start, end in pairwise(shares):
            path = 0
            for place in range(start, end):
                key = (path, runs[place])
                known = seen.get(key)
                if known is None:
                    known = seen[key] = len(seen) + 1
                else:
                    again += tokens[place]
                path = known
    return again / int(columns.prompt_tokens.sum())
