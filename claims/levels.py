"""At which level a shared machine is: it is faster at one time than at another, its memory at other times than its
multipliers. Bursts of requests tell, sent before and after what is predicted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from armillary.twin.cost import CostModel, Scaled
from armillary.twin.served import JournalStep, shared
from armillary.twin.work import StepWork


class Level(NamedTuple):
    """How many times as long as predicted steps of next tokens alone take, which mostly read memory, and steps with
    prompts, which mostly multiply."""

    tokens: float
    prompts: float


class AtLevel(Scaled):
    """A cost model on a machine at a level. What lies beside steps is as that of next tokens."""

    def __init__(self, cost: CostModel, level: Level) -> None:
        super().__init__(cost, level.tokens, beside=level.tokens)
        self._prompts = level.prompts / level.tokens

    def step_s(self, work: StepWork) -> float:
        seconds = super().step_s(work)
        return seconds * self._prompts if computes_prompts(work) else seconds


def computes_prompts(work: StepWork) -> bool:
    """Whether any sequence of a step computes more than its next token."""
    return work.tokens > work.sequences


def levels_between(windows: list[tuple[float, float]], steps: list[JournalStep], cost: CostModel) -> list[Level]:
    """The level at which each run is predicted."""
    done = list(zip(steps, shared(steps, cost), strict=True))
    inside = [[each for each in done if begin <= each[0].started <= end] for begin, end in windows]
    kinds = (
        _expected([[each for each in burst if computes_prompts(each[1]) == prompts] for burst in inside], cost)
        for prompts in (False, True)
    )
    return [Level(*both) for both in zip(*kinds, strict=True)]


def _expected(bursts: list[list[tuple[JournalStep, StepWork]]], cost: CostModel) -> list[float]:
    """Between each burst and the next, how many times as long as predicted steps are expected to take.

    A burst's level, seconds of its steps over those predicted, is partly the machine's, which stays for a while, and
    partly chance. So what a run is given of the two bursts beside it, from the mean of all, is the best linear
    prediction by how far successive bursts agree: with a correlation of r, r / (1 + r) of each deviation.
    """
    seen = [burst for burst in bursts if burst]
    if not seen:
        return [1.0] * (len(bursts) - 1)
    real = np.array([sum(step.ended - step.started for step, _ in burst) for burst in seen])
    twin = np.array([sum(cost.step_s(work) for _, work in burst) for burst in seen])
    logs = np.full(len(bursts), np.log(real / twin).mean())  # of a burst without such steps no more is known
    logs[[bool(burst) for burst in bursts]] = np.log(real / twin)
    apart = logs - logs.mean()
    agree = max(0.0, float(np.mean(apart[:-1] * apart[1:]) / max(np.mean(apart**2), 1e-12)))
    expected = np.exp(logs.mean() + agree / (1.0 + agree) * (apart[:-1] + apart[1:]))
    return [float(level) for level in expected]
