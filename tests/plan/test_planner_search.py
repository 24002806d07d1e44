"""The choice on a real space, with the simulations of the twin: as good as an exhaustive one, for a tenth."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.planner_search import KEPT, SPACES, compare, earlier, exact, question_of

from armillary.plan.trials import Trials

SPACE = "1b-l4"


@pytest.mark.slow
def test_a_small_space(tmp_path: Path) -> None:
    known = earlier(KEPT, SPACE)
    found = compare(SPACES[SPACE], tmp_path, known=known)
    assert found["designs"] >= 40
    assert found["goodput"] >= 0.98
    assert found["shares"]["simulations"] <= 0.1 and found["shares"]["seconds"] <= 0.1
    # It is no gift: most designs are worse than that.
    assert found["within_2_percent"] < found["possible"] / 2


def test_the_exhaustive_figures_that_are_kept_are_those_of_today(tmp_path: Path) -> None:
    known = {(one["max_running"], one["max_step_tokens"]): one for one in earlier(KEPT, SPACE)}
    trials = Trials(question_of(SPACES[SPACE], tmp_path))
    for design in SPACES[SPACE].designs[1::20]:
        found, kept = exact(trials, design), known[design.max_running, design.max_step_tokens]
        assert found is not None
        assert (
            found["rate"] == pytest.approx(kept["rate"], rel=0.02) and found["simulations"] <= 2 * kept["simulations"]
        )


def test_figures_of_another_space_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(KEPT.read_text().replace("tpot p95 25ms", "tpot p95 26ms"))
    with pytest.raises(SystemExit, match="must hold the space 1b-l4"):
        earlier(other, SPACE)
