"""Conversations are simulated as they are after hours of service, and requests as when a machine is busy already."""

from __future__ import annotations

import numpy as np
import pytest

from armillary.core.config import SchedulerConfig
from armillary.deployment import FleetSettings, ReplicaSettings
from armillary.measure.presets import workload_of
from armillary.measure.synthesis import WorkloadSpec
from armillary.plan.steady_load import Pace, conversing, lengths, steady_load
from armillary.twin.cost import IdealCost
from armillary.twin.fleet import simulate_fleet
from armillary.twin.fleet_result import FleetResult
from armillary.twin.member import ReplicaPlan

PACE = Pace(token_s=0.01, prompt_s=1e-5, answer_s=2.0)
CONFIG = SchedulerConfig(num_blocks=60_000, max_context=8192, max_step_tokens=2048, max_running=256, max_waiting=10**6)
CHAT = WorkloadSpec(workload="chat", rate=10.0, requests=300, seed=4)


def run(workload, config: SchedulerConfig = CONFIG) -> FleetResult:
    def build(group: ReplicaSettings) -> ReplicaPlan:
        return ReplicaPlan(config, IdealCost(0.01))

    return simulate_fleet(FleetSettings(), build, workload)


def test_conversations_are_at_every_stage() -> None:
    load = steady_load(CHAT, PACE)
    measured = load.measured(run(load.workload)).requests
    assert len(measured) == load.requests == pytest.approx(300, rel=0.15)
    assert measured.due.min() >= 0 and measured.due.max() <= 31  # at the rate from the first second to the last
    early, late = (measured.due < 15).sum(), (measured.due >= 15).sum()
    assert early == pytest.approx(late, rel=0.3)
    # As many tokens of what was said before as in the whole of the conversations.
    whole = workload_of(CHAT.model_copy(update={"requests": 20_000})).columns
    history = load.workload.columns.history
    assert history is not None and whole.history is not None
    assert history[load.before :].mean() == pytest.approx(whole.history.mean(), rel=0.25)
    # It is found in the cache, as after hours.
    assert measured.cached_tokens.sum() > 0.85 * history[load.before :].sum()


@pytest.mark.parametrize("rate", [20.0, 500.0, 10_000.0])
def test_conversations_come_at_the_rate_that_was_asked(rate: float) -> None:
    """However many seconds of conversations a sample holds: at 10,000/s, few; one of them lasts for minutes."""
    counts = []
    for seed in range(12):
        spec = WorkloadSpec(workload="chat", rate=rate, requests=round(max(600, rate)), seed=seed)
        load = steady_load(spec, PACE)
        counts.append(load.requests / spec.requests)
        columns = load.workload.columns
        assert columns.session is not None and columns.history is not None and columns.arrival is not None
        measured = slice(load.before, None)
        # Turns of one conversation come one after another, each after what was said before.
        order = np.lexsort((columns.arrival[measured], columns.session[measured]))
        session, history = columns.session[measured][order], columns.history[measured][order]
        same = session[1:] == session[:-1]
        assert (history[1:][same] > history[:-1][same]).all()
    assert np.mean(counts) == pytest.approx(1, abs=0.03)
    assert np.std(counts) < 0.08


def test_as_drawn_a_chat_does_not_reach_its_rate_for_minutes() -> None:
    """What `steady_load` is for: the same requests, begun with nothing."""
    due = run(workload_of(CHAT)).requests.due
    assert (due < 30).sum() < 0.6 * 300


def test_requests_that_stand_alone_are_measured_once_a_machine_is_busy() -> None:
    spec = WorkloadSpec(rate=20.0, requests=200, output_length="200")
    load = steady_load(spec, PACE)
    assert (load.begins, load.before) == (2.0, pytest.approx(40, abs=15))
    assert load.requests == pytest.approx(200, abs=15)
    measured = load.measured(run(load.workload)).requests
    assert measured.due.min() >= 0 and measured.ok.all()
    assert np.array_equal(measured.output_tokens, np.full(load.requests, 200))
    again = steady_load(spec, PACE)
    assert again.workload.columns == load.workload.columns


@pytest.mark.parametrize("workload", ["chat", "rag"])
def test_one_seed_gives_the_same_requests_at_rates_that_are_near(workload: str) -> None:
    """Else a knee would be where the luck of a rate is, and a change of a setting could seem to help or to harm."""
    specs = [WorkloadSpec(workload=workload, rate=rate, requests=round(20 * rate), seed=4) for rate in (10.0, 10.5)]
    several = [steady_load(spec, PACE).workload.columns for spec in specs]
    own = [set(zip(one.prompt_tokens.tolist(), one.output_tokens.tolist(), strict=True)) for one in several]
    assert len(own[0] & own[1]) > 0.7 * len(own[0])


@pytest.mark.parametrize("spec", [CHAT, WorkloadSpec(workload="rag", rate=10.0, requests=300, seed=4)])
def test_what_no_sequence_can_hold_is_left_out(spec: WorkloadSpec) -> None:
    whole = steady_load(spec, PACE)
    columns = whole.workload.columns
    middle = float(np.quantile(columns.prompt_tokens + columns.output_tokens, 0.6))
    rest = steady_load(spec, PACE, longest=middle)
    tokens = [each.prompt_tokens + each.output_tokens for each in (columns, rest.workload.columns)]
    assert tokens[0].max() > middle >= tokens[1].max()
    assert 0.3 * len(tokens[0]) < len(tokens[1]) < len(tokens[0])
    everything = WorkloadSpec(workload=spec.workload, requests=200)
    assert lengths(steady_load(everything, PACE, longest=middle).workload.columns).max() <= middle
    assert run(rest.workload).requests.ok.all()


def test_what_has_no_steady_state_is_left_as_it_is() -> None:
    everything = WorkloadSpec(requests=20)
    assert steady_load(everything, PACE).before == 0
    assert not conversing(everything) and not conversing(WorkloadSpec(workload="rag"))
    assert conversing(CHAT) and not conversing(WorkloadSpec(workload="chat", turns="1"))
