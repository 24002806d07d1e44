"""Claims from simulation: their machinery at a tiny size, and rules that broken variants do not meet."""

from __future__ import annotations

import importlib
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from armillary.core.config import SchedulerConfig
from armillary.measure.claims import load_claims
from armillary.measure.lengths import parse_lengths
from armillary.measure.statistics import Spread
from armillary.twin.cost import IdealCost


@pytest.fixture(scope="module", autouse=True)
def _claims() -> None:
    load_claims()  # puts the folder where it can be imported from


def module(name: str) -> ModuleType:
    return importlib.import_module(f"claims.{name}")


# -------------------------------------------------------------------- rates


def test_capacity_is_the_highest_rate_of_the_scale_that_holds_and_runs_are_shared() -> None:
    ran: list[float] = []

    def run(rate: float) -> float:
        ran.append(rate)
        return rate

    rates = module("rates").Rates(run, 64.0, octaves=6, per_octave=2)
    assert rates.rates[0] == 1.0 and rates.rates[-1] == 64.0
    assert rates.capacity(lambda seen: seen <= 9.0) == 8.0
    first = len(ran)
    assert first <= 4
    assert rates.capacity(lambda seen: seen <= 8.5) == 8.0 and len(ran) == first
    assert rates.capacity(lambda seen: seen <= 0.5) == 0.0
    with pytest.raises(ValueError, match="highest rate"):
        rates.capacity(lambda seen: True)


def test_lognormal_lengths_have_the_published_median_and_percentile() -> None:
    text = module("rates").lognormal(1730, 5696, 10**6)
    normals = np.array([0.0, 1.2815515594])
    assert parse_lengths(text, "prompt_tokens").at(normals).tolist() == pytest.approx([1730, 5696], rel=1e-3)


# -------------------------------------------------------------------- published times


def test_chunks_of_a_prompt_are_all_of_its_work() -> None:
    chunks, whole = module("analytic_sarathi").chunks(2047, 512), module("published").prompt(2047)
    steps = [step for step, _ in chunks]
    assert [step.tokens for step in steps] == [512, 512, 512, 511]
    assert sum(step.pairs for step in steps) == whole.pairs and sum(step.rows for step in steps) == 1
    assert steps[-1].context == whole.context


def test_calibration_says_how_far_off_the_models_are() -> None:
    published, sarathi = module("published"), module("analytic_sarathi")
    told = published.calibration(sarathi.figures(), sarathi.phase)
    found = published.compare(sarathi.figures(), sarathi.phase, [])
    assert told.split(" over")[0] in found.result and "over 28 published times" in told and "decoding" in told


# -------------------------------------------------------------------- Sarathi-Serve


def chat(**more: Any) -> Any:
    sarathi = module("twin_sarathi")
    fields = {
        "model": "Mistral 7B", "tensor": 1, "lengths": "tiny", "prompts": "lognormal:900,1.0,3000",
        "outputs": "lognormal:40,0.5,100", "context": 4096, "strict": 0.06, "published": "",
    }  # fmt: skip
    return sarathi.Case(**(fields | more))


def tiny_gains(sarathi: ModuleType) -> dict[str, Spread]:
    case, cost = chat(), module("published").cost_of("Mistral 7B", "a100-80")
    runs = [sarathi.capacities(case, cost, 40, seed) for seed in (0, 1)]
    found: dict[str, Spread] = sarathi.gains({key: Spread(tuple(run[key] for run in runs)) for key in runs[0]})
    return found


def test_chunks_serve_more_within_a_strict_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    sarathi = module("twin_sarathi")
    monkeypatch.setattr(sarathi, "SWEEP", (1.0, 5.0))
    monkeypatch.setattr(sarathi, "WAIT_S", 0.2)  # so few requests never wait for seconds
    gain = tiny_gains(sarathi)
    assert sarathi.holds(gain), gain
    right = sarathi.scheduler

    def without_chunks(case: Any, cost: Any, chunk: int | None) -> SchedulerConfig:
        config: SchedulerConfig = right(case, cost, None)
        return config

    monkeypatch.setattr(sarathi, "scheduler", without_chunks)
    assert not sarathi.holds(tiny_gains(sarathi)), "an engine that ignores its budget must be found out"


def test_the_rule_of_chunks_wants_a_gain_that_is_clear_and_shrinks() -> None:
    sarathi = module("twin_sarathi")

    def holds(strict: tuple[float, ...], relaxed: float) -> bool:
        found: bool = sarathi.holds({"strict": Spread(strict), "relaxed": Spread((relaxed,) * 3)})
        return found

    assert holds((1.6, 2.0, 3.0), 1.1)
    assert not holds((0.9, 2.0, 3.0), 1.1)
    assert not holds((1.2, 1.3, 3.0), 1.1)
    assert not holds((1.6, 2.0, 3.0), 2.1)
    assert not holds((1.6, 2.0, 3.0), 0.8)


def test_where_whole_prompts_are_as_good_is_found() -> None:
    sarathi = module("twin_sarathi")

    def found(whole: tuple[float, ...]) -> dict[tuple[str, float], Spread]:
        by_policy = {"whole": whole, "strict": (2.0,) * 4, "relaxed": (0.0, 3.0, 3.0, 3.0)}
        return {
            (name, share): Spread((value,))
            for name, values in by_policy.items()
            for share, value in zip(sarathi.SWEEP, values, strict=True)
        }

    assert sarathi.meeting(found((1.0, 1.0, 2.5, 3.0))) == sarathi.SWEEP[3]
    assert sarathi.meeting(found((0.0,) * 4)) is None


# -------------------------------------------------------------------- DistServe


def test_split_engines_keep_tokens_even_and_pay_for_the_link() -> None:
    distserve = module("twin_distserve")
    cost = module("published").cost_of("OPT-13B", "a100-80")
    seen = {
        name: distserve.serve(design, cost, 10, 0, 2.0)
        for name, design in (
            ("split", distserve.Design(1, 1)),
            ("slow", distserve.Design(1, 1, link=1e9)),
            ("shared", distserve.Design(both=2, budget=None)),
        )
    }
    tpot = {name: float(np.max(each.tpot)) for name, each in seen.items()}
    assert tpot["split"] < tpot["shared"] and tpot["split"] < tpot["slow"]
    assert seen["split"].keeps((10.0, tpot["split"])) and not seen["shared"].keeps((10.0, 0.019))
    kv = distserve.KV_BYTES
    assert kv == cost.shape.kv_elements * 2


def test_the_rule_of_splitting_wants_both_sides_of_a_crossover() -> None:
    distserve = module("twin_distserve")

    def found(split: dict[float, float], loose: float = 1.5) -> dict[Any, Spread]:
        limits = [(distserve.TTFT, tpot) for tpot in distserve.TPOTS]
        return (
            {("shared", limit): Spread((1.0, 1.0)) for limit in limits}
            | {("split", limit): Spread((split.get(limit[1], 0.9),) * 2) for limit in limits}
            | {("shared", (0.8, 0.2)): Spread((loose,)), ("split", (0.8, 0.2)): Spread((1.0,))}
        )

    tight = dict.fromkeys(distserve.TPOTS[:3], 1.5)
    slow = Spread((0.5,))
    assert distserve.holds(found(tight), slow)
    assert distserve.loosest_win(found(tight)) == distserve.TPOTS[2]
    assert distserve.crossing(found(tight)) == distserve.TPOTS[3]
    assert not distserve.holds(found({}), slow), "no win"
    assert not distserve.holds(found(dict.fromkeys(distserve.TPOTS, 1.5)), slow), "no crossover"
    assert not distserve.holds(found(tight, loose=1.0), slow), "no loss at loose limits"
    assert not distserve.holds(found(tight), Spread((1.2,))), "a slow link that costs nothing"


# -------------------------------------------------------------------- AlpaServe


def test_a_pipeline_is_two_queues_in_a_row() -> None:
    alpaserve = module("twin_alpaserve")
    bursts = alpaserve.Bursts.of(3.0, 5, 60)
    arrivals = np.sort(np.concatenate(bursts.times)) * 2 / 1.3
    first = second = 0.0
    expected = []
    for at in arrivals:
        first = max(at, first) + 0.6
        second = max(first, second) + 0.6
        expected.append(second - at)
    assert np.allclose(bursts.together(1.3, alpaserve.Pipeline(1.2)), expected)


def test_the_formula_of_the_crossover_and_simulations_of_poisson_arrivals_agree() -> None:
    alpaserve = module("twin_alpaserve")
    for load, overhead in ((0.5, 1.069), (1.0, 1.131), (1.5, 1.111)):
        # The closed form of the authors' repository (experiments/motivation/queueing_theory_plot.py).
        r = load
        closed = (-8 + r**2 + (64 - 96 * r + 56 * r**2 - 12 * r**3 + r**4) ** 0.5) / (3 * (-2 * r + r**2))
        assert alpaserve.predicted(load) == pytest.approx(closed) == pytest.approx(overhead, abs=5e-4)

    def found(cv: float, seed: int, each: int) -> float:
        bursts = alpaserve.Bursts.of(cv, seed, each)
        overhead: float = alpaserve.crossover(bursts, 1.0, float(bursts.alone(1.0).mean()))
        return overhead

    assert float(np.median([found(1.0, seed, 300) for seed in range(3)])) == pytest.approx(1.131, abs=0.04)
    assert found(3.0, 0, 200) > 1.2


def test_the_rule_of_multiplexing_wants_theory_growth_and_gain() -> None:
    alpaserve = module("twin_alpaserve")

    def found(last: float = 4.0, poisson: float = 0.0, bursty: float = 2.0) -> Any:
        crossovers = {
            (cv, load): Spread((alpaserve.predicted(load) + (poisson if cv == 1.0 else 0.1 * cv),))
            for cv in alpaserve.CVS
            for load in alpaserve.LOADS
        }
        capacities = {("alone", cv): Spread((1.0, 1.0)) for cv in alpaserve.CVS}
        capacities |= {("pipeline", 1.0): Spread((1.1, 1.1)), ("pipeline", 2.0): Spread((bursty, bursty))}
        return alpaserve.Found(crossovers, capacities | {("pipeline", 3.0): Spread((last, last))}, {})

    assert alpaserve.holds(found())
    assert not alpaserve.holds(found(poisson=0.05)), "far from the formula"
    assert not alpaserve.holds(found(poisson=0.15)), "no growth with bursts"
    assert not alpaserve.holds(found(last=1.4, bursty=1.2)), "too little gain"
    assert not alpaserve.holds(found(bursty=5.0)), "a gain that shrinks"


def test_sharing_a_device_without_its_help_gains_nothing() -> None:
    """The broken variant: two models on one device of the two."""
    alpaserve = module("twin_alpaserve")
    bursts = alpaserve.Bursts.of(3.0, 1, 150)
    capacity = partial(alpaserve.capacity, bursts)
    assert capacity(IdealCost(0.5)) > capacity(None) > 0.0
    assert capacity(IdealCost(2.0)) < capacity(None)
