"""The choice on a real space, with the simulations of the twin: as good as an exhaustive one, for about a tenth."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.planner_search import SPACES, compare


@pytest.mark.slow
def test_a_small_space(tmp_path: Path) -> None:
    found = compare(SPACES["1b-l4"], tmp_path)
    assert found["designs"] >= 40
    assert found["goodput"] >= 0.98 and found["goodput_unseen"] >= 0.98
    assert found["shares"]["simulations"] <= 0.1 and found["shares"]["seconds"] <= 0.1
    # It is no gift: most designs are worse than that.
    assert found["within_2_percent"] < found["possible"] / 2
