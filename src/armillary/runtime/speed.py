"""What this machine does per second, measured: bytes read from memory, and multiply-adds in large matrices."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np


@dataclass(frozen=True)
class Rate:
    """A measured rate per second.

    Attributes:
        best: the fastest repeat, which is the one that other programs disturbed least.
        median: what half of the repeats reached.
        repeats: how many there were.
    """

    best: float
    median: float
    repeats: int


def read_bandwidth(limit: int, threads: int, seconds: float = 0.8) -> Rate:
    """Bytes per second that so many threads read from memory together.

    Each looks for the largest number of its part, which reads each number once and does next to nothing with it, as
    the decoding of a single sequence does. All of it is larger than the last-level caches of most machines.

    Args:
        limit: bytes the measurement may take; half a gigabyte is enough anywhere.
        seconds: how long to repeat.
    """
    parts = np.array_split(np.ones(max(1 << 18, min(limit, 512 << 20) // 4), dtype=np.float32), threads)
    with ThreadPoolExecutor(threads, "bandwidth") as pool:
        return _repeat(lambda: list(pool.map(np.max, parts)), sum(part.nbytes for part in parts), seconds)


def matrix_peak(dtype: str, seconds: float = 0.8) -> Rate:
    """Floating point operations per second (two per multiply-add) in a large square product of `dtype`.

    The side grows until one product takes a measurable time, so that a slow format does not take minutes.
    """
    import torch

    side, kind = 256, getattr(torch, dtype)
    matrix = torch.ones(side, side, dtype=kind)
    while _seconds(partial(torch.mm, matrix, matrix)) < 0.02 and side < 4096:
        side *= 2
        matrix = torch.ones(side, side, dtype=kind)
    return _repeat(partial(torch.mm, matrix, matrix), 2 * side**3, seconds)


def _repeat(work: Callable[[], object], amount: float, seconds: float) -> Rate:
    """Repeat `work`, which handles `amount` units, for `seconds`, and at least three times."""
    rates: list[float] = []
    work()
    end = time.perf_counter() + seconds
    while len(rates) < 3 or time.perf_counter() < end:
        rates.append(amount / _seconds(work))
    return Rate(best=max(rates), median=statistics.median(rates), repeats=len(rates))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return max(time.perf_counter() - start, 1e-9)
