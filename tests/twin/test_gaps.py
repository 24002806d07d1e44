"""What a simulation counts of gaps between tokens and of KV blocks is what its journal says, preemptions included."""

from __future__ import annotations

import json
from math import ceil, isnan

import pytest

from armillary.core.config import SchedulerConfig
from armillary.core.journal import Journal, expand
from armillary.measure.journal import Life
from armillary.measure.observed import lived
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.twin.cost import IdealCost
from armillary.twin.gaps import Gaps, gap_quantile
from armillary.twin.simulate import simulate

TIGHT = SchedulerConfig(num_blocks=24, max_context=96, block_size=4, max_step_tokens=32, max_running=8)
SPEC = WorkloadSpec(
    requests=120, rate=6.0, prompt_length="uniform:1,40", output_length="uniform:1,50", prefixes=2, prefix_length=9,
    seed=4,
)  # fmt: skip


@pytest.mark.parametrize("leap", [False, True])
def test_gaps_and_blocks_are_those_of_the_journal(leap: bool) -> None:
    lines: list[str] = []
    cost = IdealCost(0.01, 0.002, between=0.001, exponential=True, seed=1)
    result = simulate(TIGHT, synthesise(SPEC), cost, journal=Journal(lines.append), leap=leap)
    assert result.stats.preemptions > 5
    steps = [json.loads(step) for line in lines for step in expand(line) if not line.startswith('{"submit"')]
    free = [step["free"] for step in steps if "step" in step]
    assert result.steps.blocks == sum(24 - count for count in free) > 0
    assert result.steps.peak_blocks == 24 - min(free)
    run, _ = lived(Life(1, [step for line in lines for step in expand(line)]))
    assert run.gaps is not None and result.steps.gaps.counts.total() == len(run.gaps)
    for share in (0.1, 0.5, 0.95, 0.99, 1.0):
        exact = sorted(run.gaps)[ceil(share * len(run.gaps)) - 1]
        assert gap_quantile([result.steps.gaps], share) == pytest.approx(exact, rel=0.02)


def test_gaps_of_several_are_counted_together() -> None:
    one, other = Gaps(), Gaps()
    assert isnan(gap_quantile([one, other], 0.5))
    one.add(0.01, 99)
    one.add(0.0, 50)
    other.add(0.5)
    assert gap_quantile([one, other], 0.99) == pytest.approx(0.01, rel=0.01)
    assert gap_quantile([one, other], 1.0) == pytest.approx(0.5, rel=0.01)
