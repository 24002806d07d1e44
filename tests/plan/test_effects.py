"""Known responses are recovered: effects, interactions, curvature, the flat point, and what is only noise."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest

from armillary.errors import ArmillaryError
from armillary.plan.answers import answer
from armillary.plan.design import model_terms
from armillary.plan.effects import Analysis, analyse
from armillary.plan.experiment import Experiment, Observations, observe, plan_runs, take_runs
from armillary.plan.surface import best_settings, stationary_point

FACTORS = {
    "engine.max_running": [8, 64],
    "engine.max_step_tokens": [128, 512],
    "engine.prefix_cache": [False, True],
    "workload.rate": [2.0, 6.0],
}


def experiment(**changes: object) -> Experiment:
    return Experiment.model_validate({"factors": FACTORS, **changes})


def observed(given: Experiment, truth: Callable[[np.ndarray], float], noise: float, seed: int = 0) -> Observations:
    factors, rng = given.factor_list(), np.random.default_rng(seed)
    runs = plan_runs(given, given.make_design())
    shift = rng.normal(0, 1.0, given.replicates)  # what the arrivals of a block have in common

    def response(point, seed_of_run):
        coded = np.array([f.code(point[f.path]) for f in factors])
        return {"ttft_p95": truth(coded) * math.exp(noise * rng.normal())}

    values = take_runs(given, runs, response)
    for run, value in zip(runs, values, strict=True):
        value["ttft_p95"] *= math.exp(shift[run.block])
    return observe(factors, runs, values)


def analysed(given: Experiment, truth: Callable[[np.ndarray], float], noise: float, seed: int = 0) -> Analysis:
    return analyse(observed(given, truth, noise, seed), "ttft_p95", model_terms(given.make_design()), log=True)


def screening(x: np.ndarray) -> float:
    """Doubles with the rate, falls by a fifth with the cache, and the two interact; the rest does nothing."""
    return math.exp(math.log(2) / 2 * x[3] + math.log(0.8) / 2 * x[2] + 0.1 * x[2] * x[3])


@pytest.mark.parametrize("design", ["full", "fractional"])
def test_known_effects_are_recovered_across_noise_and_blocks(design):
    found = analysed(experiment(design=design, replicates=4), screening, 0.03)
    effects = {effect.label: effect for effect in found.effects}
    assert effects["workload.rate"].estimate == pytest.approx(math.log(2), abs=0.06)
    assert effects["engine.prefix_cache"].estimate == pytest.approx(math.log(0.8), abs=0.06)
    # Of the fraction the interaction hides behind its alias, which is said.
    hidden = (
        effects.get("engine.prefix_cache × workload.rate") or effects["engine.max_running × engine.max_step_tokens"]
    )
    assert hidden.estimate == pytest.approx(0.2, abs=0.06)
    if design == "fractional":
        assert hidden.aliases == ("engine.prefix_cache × workload.rate",)
    matter = {effect.label for effect in found.effects if effect.matters}
    assert matter == {"workload.rate", "engine.prefix_cache", hidden.label}
    assert found.log and found.by == "residuals" and found.explained > 0.95
    assert all(effect.low < effect.estimate < effect.high for effect in found.effects)
    assert effects["workload.rate"].share > 0.7
    assert [source.label for source in found.anova][-2:] == ["blocks", "residual"]
    assert found.sigma == pytest.approx(0.03, rel=0.5)


def test_intervals_cover_the_truth_as_often_as_they_say():
    covered = 0
    given = experiment(replicates=2)
    for seed in range(40):
        effect = next(e for e in analysed(given, screening, 0.2, seed).effects if e.label == "workload.rate")
        covered += effect.low <= math.log(2) <= effect.high
    assert 34 <= covered <= 40


def test_noise_alone_moves_nothing():
    found = 0
    for seed in range(30):
        found += any(e.matters for e in analysed(experiment(replicates=3), lambda x: 1.0, 0.3, seed).effects)
    assert found <= 5  # one in twenty of whole experiments, not of effects


def test_statsmodels_agrees_with_a_textbook():
    # Montgomery, example 6.2: filtration rate, 2^4 unreplicated; effects of A, C, D, AC and AD.
    rate = [45, 71, 48, 65, 68, 60, 80, 65, 43, 100, 45, 104, 75, 86, 70, 96]
    factors = {f"engine.{name}": [1, 2] for name in ("max_running", "max_step_tokens", "block_size", "kv_blocks")}
    given = Experiment.model_validate({"factors": factors, "design": "full", "replicates": 1})
    design, told = given.make_design(), given.factor_list()
    runs = plan_runs(given, design)
    standard = {tuple(row): value for row, value in zip(design.rows.tolist(), rate, strict=True)}
    values = [{"e2e_mean": float(standard[tuple(f.code(run.point[f.path]) for f in told)])} for run in runs]
    found = analyse(observe(told, runs, values), "e2e_mean", model_terms(design), log=False)
    effects = {effect.term: effect.estimate for effect in found.effects}
    assert [effects[term] for term in ((0,), (2,), (3,), (0, 2), (0, 3))] == pytest.approx(
        [21.625, 9.875, 14.625, -18.125, 16.625]
    )


def test_the_analysis_of_variance_is_that_of_statsmodels():
    import pandas as pd
    import statsmodels.formula.api as smf
    from statsmodels.stats.anova import anova_lm

    data = observed(experiment(replicates=3), screening, 0.2)
    found = analyse(data, "ttft_p95", [(0,), (3,), (2, 3)], log=True)
    table = pd.DataFrame(data.rows, columns=list("abcd")).assign(y=np.log(data.values["ttft_p95"]), block=data.blocks)
    theirs = anova_lm(smf.ols("y ~ a + d + c:d + C(block, Sum)", data=table).fit(), typ=3)
    for source, row in zip(found.anova, ("a", "d", "c:d", "C(block, Sum)", "Residual"), strict=True):
        assert source.squares == pytest.approx(theirs.loc[row, "sum_sq"], rel=1e-9)
        assert source.freedom == theirs.loc[row, "df"]
        assert source.p is None or source.p == pytest.approx(theirs.loc[row, "PR(>F)"], rel=1e-6)
    shares = {effect.label: effect.share for effect in found.effects}
    within = sum(source.squares for source in found.anova if source.label != "blocks")
    assert shares["workload.rate"] == pytest.approx(found.anova[1].squares / within, rel=1e-9)


def test_without_replicates_small_effects_stand_for_noise():
    given = experiment(design="full", replicates=1)
    terms = [(0,), (1,), (2,), (3,), *[(i, j) for i in range(4) for j in range(i + 1, 4)]]
    terms += [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3), (0, 1, 2, 3)]
    found = analyse(observed(given, screening, 0.02), "ttft_p95", terms, log=True)
    assert found.by == "Lenth" and found.freedom == 0 and not found.anova
    assert {e.label for e in found.effects if e.matters} >= {"workload.rate", "engine.prefix_cache"}
    assert all(check.p is None and check.passed for check in found.checks)


def test_a_twin_without_noise_has_exact_effects():
    found = analysed(experiment(design="full", replicates=1), lambda x: math.exp(0.3 * x[0]), 0.0)
    assert {e.label for e in found.effects if e.matters} == {"engine.max_running"}
    assert all(check.verdict == "no residuals to speak of" for check in found.checks)


def test_where_only_arrivals_differ_nothing_is_said_on_the_side():
    given = experiment(factors={"engine.max_running": [4, 32]}, design="full")
    rows, blocks = np.array([[-1.0], [1.0], [1.0], [-1.0]]), np.array([0, 0, 1, 1])
    for other in np.linspace(1.1, 3.0, 40):  # of which some leave residuals of exactly nothing
        told = Observations(given.factor_list(), rows, blocks, {"x": np.array([1.0, 1.0, other, other])})
        with warnings.catch_warnings(action="error"):
            found = analyse(told, "x", [(0,)], log=True)
        assert not any(effect.matters for effect in found.effects)


def test_the_flat_point_of_a_bowl():
    given = experiment(
        factors={"engine.max_running": [10, 110], "engine.max_step_tokens": {"levels": [100, 10_000], "scale": "log"}},
        design="central-composite",
        replicates=3,
    )

    def bowl(x: np.ndarray) -> float:
        return math.exp(0.5 * (x[0] - 0.4) ** 2 + 0.8 * (x[1] + 0.2) ** 2 + 0.2 * (x[0] - 0.4) * (x[1] + 0.2))

    data = observed(given, bowl, 0.02)
    found = analyse(data, "ttft_p95", model_terms(given.make_design()), log=True)
    flat = stationary_point(found, data.factors)
    assert flat is not None and flat.kind == "minimum" and flat.inside
    assert flat.coded == pytest.approx((0.4, -0.2), abs=0.06)
    assert flat.point["engine.max_running"] == pytest.approx(80, abs=4)
    best = best_settings(found, data.factors, lower=True)
    assert best.point["engine.max_running"] == pytest.approx(80, abs=4)
    assert best.point["engine.max_step_tokens"] == pytest.approx(631, rel=0.2)
    worst = best_settings(found, data.factors, lower=False)
    assert abs(data.factors[0].code(worst.point["engine.max_running"])) == 1


def test_the_best_corner_of_a_plane():
    given = experiment(design="full", replicates=2)
    data = observed(given, screening, 0.01)
    found = analyse(data, "ttft_p95", model_terms(given.make_design()), log=True)
    assert stationary_point(found, data.factors) is None
    best = best_settings(found, data.factors, lower=True)
    # Settings are chosen; the workload is what it is, on average.
    assert best.point["engine.prefix_cache"] is True and "workload.rate" not in best.point
    middle = float(np.mean(np.log(data.values["ttft_p95"])))
    assert best.value == pytest.approx(math.exp(middle + math.log(0.8) / 2), rel=0.02)


def test_drift_and_uneven_spread_are_noticed():
    given = experiment(design="full", replicates=4)
    runs = plan_runs(given, given.make_design())
    rng = np.random.default_rng(0)
    drift = [{"x": 1.0 + 0.02 * i + 0.01 * rng.normal()} for i in range(len(runs))]
    data = observe(given.factor_list(), runs, drift)
    whole = Observations(data.factors, data.rows, np.zeros(len(runs), dtype=np.int64), data.values)
    assert not {c.about: c for c in analyse(whole, "x", [(0,)], log=False).checks}["independence of run order"].passed
    rows = data.rows
    uneven = [{"x": 10 + 8 * row[3] + (5 if row[3] > 0 else 0.01) * rng.normal()} for row in rows]
    found = analyse(observe(given.factor_list(), runs, uneven), "x", [(3,)], log=False)
    assert not {c.about: c for c in found.checks}["constant variance"].passed


def test_a_response_that_never_varies_is_refused():
    with pytest.raises(ArmillaryError, match="must vary"):
        analysed(experiment(replicates=1), lambda x: 1.0, 0.0)


def test_an_interaction_of_three_is_not_told_as_one_of_two_that_do_nothing():
    """A fraction of five factors cannot tell the product of three from that of the other two."""
    given = experiment(
        factors={**FACTORS, "engine.order": ["fcfs", "deadline"]}, design="fractional", resolution=5, replicates=2
    )
    seen = observed(given, lambda x: math.exp(x[0] + x[1] + 0.2 * x[3] + 0.4 * x[0] * x[1] * x[3]), 0.01)
    found = analyse(seen, "ttft_p95", model_terms(given.make_design()), log=True)
    (told,) = [line for line in answer(found, seen).matters if "interact" in line]
    assert told.startswith("engine.prefix_cache and engine.order interact") and told.endswith(
        "Neither has an effect of its own, so it is rather engine.max_running × engine.max_step_tokens × "
        "workload.rate, from which this fraction cannot tell it."
    )
    seen = observed(given, lambda x: math.exp(x[0] + x[2] + 0.4 * x[2] * x[4]), 0.01)
    found = analyse(seen, "ttft_p95", model_terms(given.make_design()), log=True)
    assert not any("rather" in line for line in answer(found, seen).matters), "one of the two has an effect"
