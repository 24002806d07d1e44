"""A burst is twice the rate for a minute, no sooner and no longer, whatever is simulated to warm up."""

from __future__ import annotations

import numpy as np
import pytest

from armillary.measure.synthesis import WorkloadSpec
from armillary.plan.burst import _moved
from armillary.plan.steady_load import Pace, steady_load

PACE = Pace(token_s=0.01, prompt_s=1e-5, answer_s=3.0)


@pytest.mark.parametrize("changes", [{"workload": "chat"}, {"output_length": "200"}])
def test_what_is_measured_begins_when_it_should(changes: dict[str, str]) -> None:
    load = steady_load(WorkloadSpec(requests=600, rate=20.0, **changes), PACE)
    items = _moved(load, 3.0, 100.0, "burst-")
    due = np.array([item.arrival for item in items])
    assert (np.diff(due) >= 0).all() and len(items) == len(load.workload)
    assert due[load.before :].min() >= 100 and due[load.before :].max() <= 136
    assert 97 <= due[due >= 50].min() < 98  # with the ramp right before it
    filling = due[due < 50]
    assert len(filling) == (0 if "output_length" in changes else pytest.approx(load.before - 60, abs=25))
    assert all(item.id.startswith("burst-") for item in items)
