"""Designs: their sizes, their aliases, and what a path may name."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.errors import ArmillaryError
from armillary.plan.design import aliases, column, label, make_design, model_terms
from armillary.plan.experiment import roots
from armillary.plan.factors import Factor, check_path, laid_over


def factors(count: int, *levels: float) -> list[Factor]:
    return [Factor(f"engine.x{i}", levels or (1, 9)) for i in range(count)]


@pytest.mark.parametrize(
    ("count", "resolution", "runs", "reached"),
    # Box, Hunter and Hunter, table of fractional designs.
    [(3, 3, 4, 3), (4, 4, 8, 4), (5, 5, 16, 5), (5, 3, 8, 3), (6, 4, 16, 4), (7, 3, 8, 3), (7, 4, 16, 4), (8, 4, 16, 4),
     (9, 4, 32, 4), (11, 3, 16, 3), (15, 3, 16, 3), (16, 4, 32, 4), (6, 6, 32, 6), (3, 5, 8, 4)],
)  # fmt: skip
def test_fractions_are_as_small_as_the_tables_say(count, resolution, runs, reached):
    design = make_design("fractional", factors(count), resolution=resolution)
    assert design.rows.shape == (runs, count)
    assert design.resolution == reached
    # Balanced and orthogonal, and main effects are clear of as many factors as the resolution says.
    np.testing.assert_allclose(design.rows.T @ design.rows, runs * np.eye(count))
    for size in range(2, min(reached - 1, 4)):
        for term in itertools.combinations(range(count), size):
            assert not np.any(design.rows.T @ column(design.rows, term) * [i not in term for i in range(count)])


def test_a_fraction_reports_what_it_cannot_tell_apart():
    design = make_design("fractional", factors(4))
    assert aliases(design.rows) == {(0, 1): [(2, 3)], (0, 2): [(1, 3)], (0, 3): [(1, 2)]}
    assert model_terms(design) == [(0,), (1,), (2,), (3,), (0, 1), (0, 2), (0, 3)]
    half = make_design("fractional", factors(3), resolution=3)
    assert aliases(half.rows) == {(0,): [(1, 2)], (1,): [(0, 2)], (2,): [(0, 1)]}
    assert aliases(make_design("full", factors(3)).rows) == {}


def test_sizes_of_the_other_designs():
    assert make_design("full", factors(2, 1, 2, 4)).rows.shape == (9, 2)
    assert make_design("plackett-burman", factors(11)).rows.shape == (12, 11)
    composite = make_design("central-composite", factors(3))
    assert composite.rows.shape == (8 + 6 + 3, 3) and np.abs(composite.rows).max() == 1
    assert set(model_terms(composite)) >= {(0,), (0, 1), (2, 2)}
    assert model_terms(make_design("plackett-burman", factors(5))) == [(i,) for i in range(5)]


@settings(max_examples=25)
@given(count=st.integers(1, 5), points=st.integers(6, 40), seed=st.integers(0, 5))
def test_a_latin_hypercube_has_one_point_in_every_slice(count, points, seed):
    rows = make_design("latin-hypercube", factors(count, 0.0, 1.0), points=points, seed=seed).rows
    slices = np.floor((rows + 1) / 2 * points - 1e-9).clip(0)
    for i in range(count):
        assert sorted(slices[:, i].astype(int)) == list(range(points))
    np.testing.assert_array_equal(
        rows, make_design("latin-hypercube", factors(count, 0.0, 1.0), points=points, seed=seed).rows
    )


def test_codes_go_there_and_back():
    whole, ratio = Factor("engine.max_running", (16, 64)), Factor("workload.rate", (1.0, 100.0), "log")
    assert [whole.decode(c) for c in (-1, 0, 1)] == [16, 40, 64]
    assert ratio.decode(0) == 10.0 and ratio.code(10.0) == pytest.approx(0)
    switch = Factor("engine.prefix_cache", (False, True))
    assert [switch.decode(switch.code(v)) for v in (False, True)] == [False, True]
    assert label((0, 1), [whole, ratio]) == "engine.max_running × workload.rate"


@pytest.mark.parametrize("path", ["engine.max_running", "models.0.path", "models.0.engine.dtype", "workload.rate"])
def test_paths_that_exist(path):
    check_path(path, roots())


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("engine.max_runing", "did you mean max_running"),
        ("engine.speed_of_light", "engine.max_running"),
        ("motor.max_running", "engine"),
        ("engine", "single setting"),
        ("models.path", "number of an entry"),
        ("workload.rate.high", "end at"),
    ],
)
def test_paths_that_do_not_exist(path, words):
    with pytest.raises(ArmillaryError, match=words):
        check_path(path, roots())


def test_values_are_laid_over_what_is_there():
    before = {"models": ["isles"], "engine": {"order": "fcfs"}}
    after = laid_over(before, {"models.0.engine.max_running": 4, "engine.max_step_tokens": 64, "models.1.path": "x"})
    assert after == {
        "models": [{"path": "isles", "engine": {"max_running": 4}}, {"path": "x"}],
        "engine": {"order": "fcfs", "max_step_tokens": 64},
    }
    assert before == {"models": ["isles"], "engine": {"order": "fcfs"}}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: Factor("a", (1,)), "two different"),
        (lambda: Factor("a", (2, 1)), "low to high"),
        (lambda: Factor("a", ("x", "y", "z")), "two at a time"),
        (lambda: Factor("a", (0, 1), "log"), "above 0"),
        (lambda: Factor("a", (False, True), "log"), "number"),
        (lambda: make_design("fractional", factors(2)), "at least 3"),
        (lambda: make_design("fractional", factors(4), resolution=2), "at least 3"),
        (lambda: make_design("fractional", factors(4, 1, 2, 3)), "two levels"),
        (lambda: make_design("central-composite", [Factor("a", (False, True)), Factor("b", (1, 2))]), "numbers"),
        (lambda: make_design("full", factors(13)), "fractional"),
        (lambda: make_design("latin-hypercube", factors(3), points=3), "points"),
        (lambda: make_design("central-composite", factors(9)), "screen"),
    ],
)
def test_designs_that_cannot_be(wrong, words):
    with pytest.raises(ArmillaryError, match=words):
        wrong()
