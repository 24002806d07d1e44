"""Goals for the gaps between tokens, which a simulation counts and does not keep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from armillary.core.config import SchedulerConfig
from armillary.deployment import FleetSettings, ReplicaSettings
from armillary.errors import ArmillaryError
from armillary.measure.slo import Slo
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.twin.cost import IdealCost
from armillary.twin.fleet import simulate_fleet
from armillary.twin.fleet_result import FleetResult
from armillary.twin.gaps import Gaps, gap_quantile, gap_share
from armillary.twin.goals import judged, of_means, without_gaps
from armillary.twin.member import ReplicaPlan


def run(waiting: int = 100) -> FleetResult:
    """Gaps of 10 ms and 2 ms for each sequence."""

    def build(group: ReplicaSettings) -> ReplicaPlan:
        config = SchedulerConfig(
            num_blocks=200, max_context=400, max_step_tokens=64, max_running=8, max_waiting=waiting
        )
        return ReplicaPlan(config, IdealCost(0.01, 0.002))

    spec = WorkloadSpec(requests=100, rate=20.0, prompt_length="uniform:10,60", output_length="uniform:2,30", seed=1)
    return simulate_fleet(FleetSettings(), build, synthesise(spec))


def test_goals_for_gaps_are_judged_by_all_of_them() -> None:
    result = run()
    quick, slow = (gap_quantile([result.replicas[0].steps.gaps], share) for share in (0.2, 0.9))
    assert 0.012 < quick < slow < 0.03
    for share, gap in ((20, quick), (90, slow)):
        assert judged(result, Slo.parse(f"itl p{share} {1.001e6 * gap:.0f}us"), {})[0]
        assert not judged(result, Slo.parse(f"itl p{share} {0.97e6 * gap:.0f}us"), {})[0]
        assert not judged(result, Slo.parse(f"ttft p50 1us, itl p{share} {1.001e6 * gap:.0f}us"), {})[0]
    met, good = judged(result, Slo.parse("itl p95 1us"), {})
    assert (met, good) == (False, 1.0)  # whose gaps they were is not kept


def test_a_request_that_failed_is_one_gap_too_long() -> None:
    result = run(waiting=1)
    failed = int((~result.requests.ok).sum())
    gaps = result.replicas[0].steps.gaps
    assert failed and gap_share([gaps], 1.0) == 1.0
    count = gaps.counts.total()
    assert gap_share([gaps], 1.0, failed) == count / (count + failed)
    share = 100 * count / (count + failed)
    assert not judged(result, Slo.parse(f"itl p{share + 0.1:.3f} 1s"), {})[0]
    assert judged(result, Slo.parse(f"itl p{share - 0.1:.3f} 1s"), {})[0]


def test_what_is_left_of_a_level() -> None:
    slo = Slo.parse("ttft p95 1s, itl p99 40ms")
    assert str(without_gaps(slo)) == "ttft p95 1000ms"
    assert str(of_means(slo)) == "ttft p95 1000ms, tpot p99 40ms"
    assert gap_share([Gaps()], 1.0) == 1.0


def test_a_class_has_no_goals_for_gaps() -> None:
    classes = {"quick": Slo.parse("itl p95 20ms")}
    found = run()
    none = np.zeros(len(found.requests), dtype=np.int64)
    requests = replace(found.requests, slo_class=none, slo_classes=("quick",))
    with pytest.raises(ArmillaryError, match="classes must have goals for ttft, .* given itl p95 20ms for quick"):
        judged(replace(found, requests=requests), Slo(), classes)
