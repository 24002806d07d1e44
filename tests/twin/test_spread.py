"""How steps vary around their mean: what a profile keeps of it, what is drawn, and that neither moves any mean."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from armillary.core.config import SchedulerConfig
from armillary.core.journal import Journal, expand
from armillary.deployment import FleetSettings, build
from armillary.errors import ArmillaryError
from armillary.measure.synthesis import WorkloadSpec, synthesise
from armillary.twin import deployed as deployed_module
from armillary.twin.cost import IdealCost
from armillary.twin.deployed import Deployed
from armillary.twin.fitted import FittedCost
from armillary.twin.fleet import simulate_fleet
from armillary.twin.member import ReplicaPlan
from armillary.twin.profile import Lived, Profile, shipped_profile
from armillary.twin.simulate import SimulationResult, simulate
from armillary.twin.spread import LASTING, Draws, Spread, spread_of
from armillary.twin.work import StepWork


def lasting(*shares: float) -> list[float]:
    """The parts of a spread, of which these are the first."""
    return [*shares, *[0.0] * (len(LASTING) - len(shares))]


CONFIG = SchedulerConfig(num_blocks=64, max_context=128, block_size=4, max_step_tokens=32, max_running=8)
COST = IdealCost(0.01, 0.002, between=0.001)
SPREAD = Spread(limits_s=[0.015], factors=[[0.25, 0.5, 0.75, 2.5], [0.9, 1.0, 1.1]], common=lasting(0.3, 0.2))
SPEC = WorkloadSpec(
    requests=150, rate=15.0, prompt_length="uniform:1,60", output_length="uniform:1,40", prefixes=2, prefix_length=9,
    deadline=3.0, seed=8,
)  # fmt: skip


def run(spread: Spread | None = SPREAD, seed: int = 1, leap: bool = True) -> tuple[list[str], SimulationResult]:
    lines: list[str] = []
    workload = synthesise(SPEC)
    journal = Journal(lines.append)
    result = simulate(CONFIG, workload, COST, journal=journal, spread=spread, seed=seed, leap=leap)
    return [step for line in lines for step in expand(line)], result


def test_a_spread_is_found_again() -> None:
    """Short steps vary widely and go on doing so for a millisecond, long ones little."""
    rng = Random(5)
    ratios, place = [], 0.5
    for index in range(30_000):
        short = index // 50 % 2 == 0
        if rng.random() < (0.4 / 1.4 if short else 20 / 21):
            place = rng.random()
        far = place > 5 / 6
        ratios.append((0.4e-3, 3.5 if far else 0.5) if short else (20e-3, 1.25 if far else 0.95))
    found = spread_of(ratios)
    assert found is not None and len(found.factors) == 2 and 0.4e-3 < found.limits_s[0] < 20e-3
    short, long = (np.array(band) for band in found.factors)
    assert (
        len(short) == 1000 and short.mean() == pytest.approx(1, abs=1e-3) and long.mean() == pytest.approx(1, abs=1e-3)
    )
    assert (short > 2).mean() == pytest.approx(1 / 6, abs=0.03) and short.std() > 5 * long.std() > 0
    after = [found.agreement(later, 0.4e-3) for later in (1, 10)]
    assert after == pytest.approx([1 / 1.4, 1 / 1.4**10], abs=0.05)
    assert found.agreement(1, 20e-3) == pytest.approx(1 / 21, abs=0.05)


def test_few_steps_tell_nothing() -> None:
    assert spread_of([(1e-3, 1.0)] * 199) is None
    alike = spread_of([(1e-3, 1.0)] * 200 + [(1.0, 1.0)] * 199)
    assert alike == Spread(limits_s=[], factors=[[1.0] * 399])


def test_factors_have_mean_one_and_last_as_long_as_they_should() -> None:
    spread = Spread(limits_s=[1e-3], factors=[[0.1, 0.2, 3.0], [0.5, 1.5]], own=lasting(1.0))
    draws = Draws(spread, 3)
    drawn = np.array([draws(0.5e-3) for _ in range(60_000)])
    assert drawn.mean() == pytest.approx(1.0, abs=0.03)
    assert sorted(set(drawn.round(6))) == pytest.approx([0.1 / 1.1, 0.2 / 1.1, 3.0 / 1.1], abs=1e-5)
    assert np.corrcoef(drawn[1:], drawn[:-1])[0, 1] == pytest.approx(1 / 1.5, abs=0.03), (
        "a part that lasts a millisecond"
    )
    assert {draws(1e-3) for _ in range(50)} == {0.5, 1.5}


def mixed(spread: Spread, later: int, last: float) -> float:
    """How far two steps agree, of those between which half take 1 ms and half 4; the second takes `last`."""
    shares = np.array(spread.common) + np.array(spread.own)
    part = [lasts / (lasts + np.array([1e-3, 4e-3, last])) for lasts in LASTING]
    return float(sum(share * ((p[0] + p[1]) / 2) ** (later - 1) * p[2] for share, p in zip(shares, part, strict=True)))


@pytest.mark.parametrize(
    ("common", "own"),
    [
        (lasting(), lasting()),
        (lasting(0.3, 0.1, 0.1, 0.1), lasting()),
        (lasting(0.0, 0.0, 0.0, 0.3), lasting(0.4, 0.0, 0.1)),
        (lasting(), lasting(0.5, 0.0, 0.5)),
    ],
)
def test_what_is_drawn_agrees_as_what_it_was_drawn_from(common: list[float], own: list[float]) -> None:
    """Lognormal factors, so that a factor tells its deviate: they agree as the parts do, and are found again."""
    normal = NormalDist()
    factors = [math.exp(0.2 * normal.inv_cdf((place + 0.5) / 1000) - 0.02) for place in range(1000)]
    spread = Spread(limits_s=[2e-3], factors=[factors] * 2, common=common, own=own)
    draws, rng = Draws(spread, 7), Random(11)
    bands = np.array([rng.random() < 0.5 for _ in range(200_000)])
    drawn = [draws(4e-3 if band else 1e-3) for band in bands]
    alone = np.array(drawn) * np.mean(factors) > (factors[989] + factors[990]) / 2
    assert alone.mean() == pytest.approx(0.01, abs=0.002) and np.mean(alone[1:] & alone[:-1]) < 3e-4
    deviates = np.where(alone, np.nan, np.log(drawn))
    deviates -= np.nanmean(deviates)
    found = spread_of([(4e-3 if band else 1e-3, factor) for band, factor in zip(bands, drawn, strict=True)])
    assert found is not None and np.mean(drawn) == pytest.approx(1.0, abs=0.02)
    everyone = spread.model_copy(update={"own": lasting()})
    told = found.model_copy(update={"own": lasting()})
    for lag in (1, 5, 30, 100):
        products = deviates[:-lag] * deviates[lag:] / np.nanmean(deviates**2)
        alike = bands[:-lag] == bands[lag:]
        # Half of the steps between are short, half long, but for the last, which is of the second's band.
        for chosen, own in ((alike, spread), (~alike, everyone)):
            expected = np.mean([mixed(own, lag, last) for last in (1e-3, 4e-3)])
            assert np.nanmean(products[chosen]) == pytest.approx(expected, abs=0.06)
        for mine, theirs in ((found, spread), (told, everyone)):
            assert mine.agreement(lag, 2e-3) == pytest.approx(theirs.agreement(lag, 2e-3), abs=0.08)
    kept = np.quantile(found.factors[0], [0.01, 0.5, 0.99])
    assert kept == pytest.approx(np.quantile(factors, [0.01, 0.5, 0.99]), rel=0.05)


@pytest.mark.parametrize("seconds", [0.05, 0.2])
def test_a_thousand_slow_steps_tell_what_lasts_as_well(seconds: float) -> None:
    """Parts that are over before the next step cannot be told, and must not take the place of those that last."""
    factors = [math.exp(0.2 * NormalDist().inv_cdf((place + 0.5) / 1000) - 0.02) for place in range(1000)]
    spread = Spread(limits_s=[], factors=[factors], own=lasting(0.0, 0.0, 0.0, 0.2, 0.2, 0.3))
    for seed in range(12):
        draws = Draws(spread, seed)
        found = spread_of([(seconds, draws(seconds)) for _ in range(1000)])
        assert found is not None
        assert found.agreement(1, seconds) == pytest.approx(spread.agreement(1, seconds), abs=0.2)


def test_the_slowest_thousandth_is_kept() -> None:
    ratios = [(1e-3, 50.0 if step % 1000 == 500 else 1.0) for step in range(20_000)]
    found = spread_of(ratios)
    assert found is not None
    assert found.factors[0][-1] / found.factors[0][0] == pytest.approx(50.0, rel=1e-3)
    draws = Draws(found, 1)
    assert sum(draws(1e-3) > 10 for _ in range(20_000)) == pytest.approx(20, abs=16)


def test_leaping_changes_no_result_where_steps_vary() -> None:
    (steps, one), (leapt, other) = run(leap=False), run(leap=True)
    assert leapt == steps and other.steps == one.steps and other.duration_s == one.duration_s
    for name in ("due", "first", "end", "cached_tokens", "finish"):
        assert getattr(other.requests, name).tobytes() == getattr(one.requests, name).tobytes()


def test_a_seed_gives_equal_bytes_and_another_seed_other_ones() -> None:
    assert run()[0] == run()[0]
    assert run()[0] != run(seed=2)[0] != run(spread=None)[0]


def test_means_stay() -> None:
    """One sequence at a time: steps of the whole run add up to what they would without variation."""
    spec = WorkloadSpec(requests=600, prompt_length="8", output_length="20", seed=1)
    config = replace(CONFIG, max_running=1, max_waiting=10_000)
    plain, varied = (simulate(config, synthesise(spec), COST, spread=spread) for spread in (None, SPREAD))
    assert varied.steps.steps == plain.steps.steps
    assert varied.steps.busy_s == pytest.approx(plain.steps.busy_s, rel=0.05)
    assert varied.steps.between_s == pytest.approx(plain.steps.between_s, rel=0.05)
    apart = [np.diff(np.sort(one.requests.end)).std() for one in (plain, varied)]
    assert apart[0] < 1e-9 < apart[1]


def test_replicas_vary_each_for_itself() -> None:
    fleet = FleetSettings.model_validate({"replicas": [{"count": 2}], "route": "round_robin"})

    def simulated(seed: int) -> Any:
        plan = ReplicaPlan(CONFIG, COST, spread=SPREAD)
        found = simulate_fleet(fleet, lambda group: plan, synthesise(SPEC), seed=seed)
        return found.requests.end.tobytes(), [use.steps.busy_s / use.steps.steps for use in found.replicas]

    assert simulated(1) == simulated(1) != simulated(2)
    both = simulated(1)[1]
    assert both[0] != both[1]


def test_a_profile_keeps_how_steps_varied() -> None:
    rng = np.random.default_rng(2)
    lived = Lived()
    for _ in range(3000):
        count = int(rng.choice([1, 2, 40]))
        factor = float(rng.exponential()) if count < 3 else 1.0
        lived.add(StepWork(count, count, count, 300 * count, 300 * count), 1e-3 * count * factor, 1e-4 * count * factor)
    spread = lived.averaged(60).spread
    assert spread is not None and len(spread.factors) == 3
    assert [np.std(band) for band in spread.factors] == pytest.approx([0.95, 0.95, 0.0], abs=0.12)
    assert spread.agreement(1, 1e-3) < 0.1
    assert Lived().averaged(60).spread is None
    again = Lived.model_validate_json(lived.averaged(60).model_dump_json())
    assert again.spread == spread


@pytest.mark.parametrize(
    "wrong",
    [
        {"limits_s": [], "factors": []},
        {"limits_s": [1.0], "factors": [[1.0]]},
        {"limits_s": [2.0, 1.0], "factors": [[1.0]] * 3},
        {"limits_s": [], "factors": [[-1.0, 3.0]]},
        {"limits_s": [], "factors": [[0.0]]},
        {"limits_s": [], "factors": [[1.0]], "own": [0.5]},
        {"limits_s": [], "factors": [[1.0]], "common": lasting(0.8, -0.5, 0.1, 0.1)},
        {"limits_s": [], "factors": [[1.0]], "common": lasting(0.5), "own": lasting(0.4, 0.2)},
    ],
)
def test_a_spread_that_is_none_is_refused(wrong: dict[str, object], tmp_path: Path) -> None:
    values = json.loads(shipped_profile().model_dump_json())
    values["served"]["spread"] = wrong
    (tmp_path / "p.json").write_text(json.dumps(values))
    with pytest.raises(ArmillaryError, match="profile must be a file that"):
        Profile.load(tmp_path / "p.json")


def test_deployments_vary_as_their_profile_says_unless_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = shipped_profile()
    profile.served.spread = SPREAD
    cost = FittedCost(profile)
    monkeypatch.setattr(deployed_module, "cost_for", lambda *of, **more: cost)
    monkeypatch.setattr(deployed_module, "profile_for", lambda *of: profile)
    deployment = build(None, model={"path": "isles"}, engine={"kv_blocks": 100})
    assert Deployed(deployment).kinds[0].plan.spread == SPREAD
    assert Deployed(deployment, vary=False).kinds[0].plan.spread is None
    cost.spread = None
    assert Deployed(deployment).kinds[0].plan.spread is None
