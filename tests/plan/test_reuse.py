"""What a prefix cache still holds of a conversation follows from how much others say before it goes on."""

from __future__ import annotations

import numpy as np
import pytest

from armillary.core.config import SchedulerConfig
from armillary.deployment import FleetSettings, ReplicaSettings
from armillary.measure.presets import workload_of
from armillary.measure.synthesis import WorkloadSpec
from armillary.plan.reuse import Reuse
from armillary.plan.steady_load import Pace, steady_load
from armillary.twin.cost import IdealCost
from armillary.twin.fleet import simulate_fleet
from armillary.twin.member import ReplicaPlan

PACE = Pace(token_s=0.001, prompt_s=1e-6, answer_s=0.2)


def reuse(**changes: object) -> Reuse:
    columns = workload_of(WorkloadSpec(workload="chat", requests=4000, rate=1.0, **changes)).columns
    assert columns.think is not None
    return Reuse.of(columns, np.cumsum(columns.think))


def test_a_cache_keeps_what_fits_until_it_is_full() -> None:
    found = reuse()
    assert found.shared == 256  # the preset's one prefix, which all conversations begin with
    assert np.isfinite(found.gap).mean() == pytest.approx(0.75, abs=0.05)  # four turns each
    keeps = [found.kept_s(rate, 100_000.0) for rate in (1, 10, 100)]
    # Nobody thinks for so short a time that it matters: twice the requests fill it in half the time.
    assert keeps[2] == pytest.approx(100_000 / 100 / found.context.mean(), rel=0.05)
    # What is used again takes no more room.
    assert keeps[0] > 120 * keeps[2] and keeps[0] > 12 * keeps[1]
    assert found.kept_s(1.0, np.inf) == np.inf and found.kept_s(1.0, 100.0) == 0


@pytest.mark.parametrize("blocks", [16_000, 40_000])
def test_short_simulations_find_as_much_as_after_minutes(blocks: int) -> None:
    """Others take the room of what was said: simulated from cold for as long as that needs, and for seconds."""
    config = SchedulerConfig(blocks, 8192, max_step_tokens=2048, max_running=256, max_waiting=10**6)

    def build(group: ReplicaSettings) -> ReplicaPlan:
        return ReplicaPlan(config, IdealCost(0.001))

    spec = WorkloadSpec(workload="chat", rate=50.0)
    long = simulate_fleet(FleetSettings(), build, workload_of(spec.model_copy(update={"requests": 20_000}))).requests
    shares = {"long": found(long, (long.due > 200) & (long.due < 350))}
    for name, memory in (("short", float(blocks * config.block_size)), ("kind", np.inf)):
        load = steady_load(spec.model_copy(update={"requests": 400}), PACE, memory=memory)
        run = load.measured(simulate_fleet(FleetSettings(), build, load.workload)).requests
        shares[name] = found(run, np.ones(len(run), dtype=np.bool_))
    assert shares["short"] == pytest.approx(shares["long"], abs=0.05), shares
    assert shares["kind"] > shares["long"] + 0.1, shares


def found(run, which) -> float:
    return float(run.cached_tokens[which].sum() / run.prompt_tokens[which].sum())
