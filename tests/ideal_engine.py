"""Engines made ideal, and whether what they do is what theory says, for the tests against queueing theory."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from armillary.core.config import SchedulerConfig
from armillary.measure.workload import WorkItem, Workload
from armillary.twin.fleet_result import FleetResult
from armillary.twin.simulate import SimulationResult

ONE_BY_ONE = SchedulerConfig(
    num_blocks=64, max_context=512, max_step_tokens=64, max_running=1, max_waiting=1_000_000, prefix_cache=False
)
COUNT = 7_000
WARM = 500
"""Requests at the start, when nobody waits yet, that are not counted."""


def arrivals(rate: float, count: int = COUNT, seed: int = 0, mean_tokens: float = 1.0) -> Workload:
    """Poisson arrivals of short prompts, with geometric output lengths."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, count)).tolist()
    tokens = rng.geometric(1 / mean_tokens, count).tolist()
    return Workload(
        tuple(
            WorkItem(id=str(i), arrival=time, prompt_tokens=1, output_tokens=length)
            for i, (time, length) in enumerate(zip(times, tokens, strict=True))
        )
    )


def holds(sample: np.ndarray, expected: float, batches: int = 25) -> bool:
    """Whether the interval around the mean of a correlated sample covers the expected value."""
    means = np.array([part.mean() for part in np.array_split(sample, batches)])
    half = stats.t.ppf(0.9995, batches - 1) * means.std(ddof=1) / math.sqrt(batches)
    # An interval that covers anything would prove nothing.
    assert half < 0.35 * abs(expected)
    return bool(abs(means.mean() - expected) <= half)


def responses(result: SimulationResult | FleetResult) -> np.ndarray:
    """Seconds from due to end; all must have been answered."""
    assert result.requests.ok.all()
    return result.requests.e2e[WARM:]


def gaps(result: SimulationResult) -> np.ndarray:
    """Seconds between answers, of which the mean is one over the throughput; not those of the end, when fewer ask."""
    return np.diff(np.sort(result.requests.end)[WARM:-WARM])
