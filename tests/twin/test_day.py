"""A day of a deployment of many replicas."""

from __future__ import annotations

import numpy as np
import pytest
from bench.twin_day import simulate, workload


@pytest.mark.slow
def test_a_fiftieth_of_the_day() -> None:
    """As much of the benchmark as takes ten to twenty seconds: a hundred replicas for half an hour of the night."""
    count = 20_000
    result = simulate(workload(count, 100), 100, "power_of_two")
    run = result.requests
    assert run.ok.all() and (run.output_tokens == 200).all()
    assert sum(use.steps.rows for use in result.replicas) == 200 * count
    served = np.bincount(run.replica, minlength=100)
    assert served.min() > 0.9 * count / 100 and served.max() < 1.1 * count / 100
    assert np.percentile(run.ttft, 95) < 2.0
