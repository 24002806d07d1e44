"""What is said to be the same simulation is the same one, to the byte."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.core.config import SchedulerConfig
from armillary.deployment import Deployment
from armillary.measure.slo import Slo
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.plan.designs import Design
from armillary.plan.question import Question
from armillary.plan.reached import Reached
from armillary.plan.search import Search
from armillary.plan.trials import Trials
from armillary.twin.cost import IdealCost
from armillary.twin.simulate import SimulationResult, simulate

COST = IdealCost(0.01, 0.002, between=0.001)
told: list[bool] = []
"""Whether one configuration was said to tell of another."""
by_chance: list[bool] = []
"""Whether those of which it was not said came out the same."""


def outcome(run: SimulationResult) -> tuple[bytes, ...]:
    return tuple(getattr(run.requests, name).tobytes() for name in ("first", "end", "cached_tokens"))


def reached(run: SimulationResult) -> Reached:
    return Reached(run.stats.max_running, run.stats.max_tokens, run.stats.preemptions > 0)


@given(
    rate=st.sampled_from([2.0, 8.0, 20.0, 60.0]),
    shared=st.booleans(),
    seed=st.integers(0, 99),
    blocks=st.sampled_from([40, 400]),
    first=st.tuples(st.integers(2, 40), st.integers(40, 160)),
    second=st.tuples(st.integers(2, 40), st.integers(40, 160)),
    chunk=st.sampled_from([None, 16]),
)
@settings(max_examples=150, deadline=None)
def the_same(
    rate: float,
    shared: bool,
    seed: int,
    blocks: int,
    first: tuple[int, int],
    second: tuple[int, int],
    chunk: int | None,
) -> None:
    spec = WorkloadSpec(
        requests=40, rate=rate, prompt_length="uniform:1,60", output_length="uniform:1,20",
        prefixes=3 if shared else 0, prefix_length=24 if shared else 0, seed=seed,
    )  # fmt: skip
    one, two = (
        SchedulerConfig(blocks, 128, 4, max_step_tokens=tokens, max_chunk_tokens=chunk, max_running=running)
        for running, tokens in (first, second)
    )
    runs = [simulate(config, synthesise(spec), COST) for config in (one, two)]
    tells = reached(runs[0]).tells(one, two)
    assert tells == reached(runs[1]).tells(two, one) or not tells
    if tells:
        assert outcome(runs[0]) == outcome(runs[1])
    elif one != two:
        by_chance.append(outcome(runs[0]) == outcome(runs[1]))
    told.append(tells and one != two)


def test_what_is_told_of_others_is_what_they_do() -> None:
    the_same()
    assert sum(told) > 2 and by_chance.count(False) > 10  # both sides were tried


def test_what_differs_otherwise_is_not_told() -> None:
    config = SchedulerConfig(400, 128, max_step_tokens=64, max_running=8)
    far = Reached(3, 20)
    assert far.tells(config, replace(config, max_running=4, max_step_tokens=21))
    assert not far.tells(config, replace(config, max_running=3))
    assert not far.tells(config, replace(config, max_step_tokens=20))
    assert not far.tells(config, replace(config, max_running=9, num_blocks=401))
    assert not replace(far, gave_way=True).tells(config, config)
    whole = replace(config, max_context=32, whole_prompts=True)
    assert not far.tells(whole, replace(whole, max_step_tokens=48))


def test_a_search_does_not_ask_what_another_design_has_answered() -> None:
    """Designs that differ in steps' tokens alone: the largest are never reached, and told by one of them."""
    question = Question(
        Deployment(), "h100", WorkloadSpec(prompt_length="40", output_length="20"), Slo.parse("ttft p95 1s"), vary=False
    )
    designs = [Design(1, 16, tokens) for tokens in (1024, 2048, 4096, 8192)]
    plain, knowing = Trials(question), Trials(question)
    alone = Search(plain).run(designs, plain.expected)
    found = Search(knowing, same=knowing.same).run(designs, knowing.expected)
    assert found.trials < alone.trials and found.ranking[0][1].rate == alone.ranking[0][1].rate
