"""Where the knee lies on machines that are as much slower or faster than predicted as the prediction may err."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import numpy as np

from armillary.measure.intervals import Interval, replications
from armillary.plan.designs import Design
from armillary.plan.search import Round, Search
from armillary.plan.trials import Trials
from armillary.twin.forecast import draw_factor

DRAWS = 6
"""Machines that are drawn."""
FINEST, COARSEST = 0.02, 0.06
"""How exactly the knee of such a machine is found, by how much slower or faster it is."""


def machines(trials: Trials, design: Design) -> list[float]:
    """How many times as long as predicted the steps of each machine take."""
    cost, seed = trials.deployed(design.at(1)).kinds[0].cost, trials.question.spec.seed
    return [draw_factor(cost, Random(f"knee/{seed}/{number}")) for number in range(DRAWS)]


def knee_on(trials: Trials, asked: tuple[Design, float, float]) -> float:
    """The knee of one replica on another machine, in requests a second.

    Args:
        asked: the design, how many times as long its steps take there, and its knee where they are as predicted.
    """
    design, factor, knee = asked

    def holds(one: Design, rate: float, seed: int) -> bool:
        return trials(one, rate, seed, factor=factor)

    # A few percent of doubt must not drown in how roughly it is searched, and much doubt needs no exact search.
    stage = Round(1, 0.0, min(COARSEST, max(FINEST, abs(factor - 1) / 4)))
    return Search(holds).knee(design.at(1), knee / factor, stage).rate


def between(knee: float, slower: list[float], known: Mapping[float, float]) -> Interval:
    """Where the knee of one machine lies.

    The slowest and the fastest that were drawn are simulated. In between, the knee follows from how fast a machine is:
    where nothing but time limits it, in proportion, and a line is that.

    Args:
        knee: of a machine that is as predicted.
        slower: how many times as long steps take on the machines that were drawn.
        known: of some machines, by that, their knee as a share of one as predicted; the least and the greatest of
            `slower` are among them.
    """
    points = sorted((1 / factor, share) for factor, share in {**known, 1.0: 1.0}.items())
    speeds, shares = np.array(points).T
    found = np.interp([1 / factor for factor in slower], speeds, shares)
    return replications([knee * share for share in found.tolist()]).of_one(len(slower))
