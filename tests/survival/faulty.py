"""A decorator around an executor that does everything right until its plan says otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from armillary.core.step import Step, StepResult


class Fault(Exception):
    """What a faulty part raises."""


class Faulty:
    """Runs steps through another executor, with faults.

    Attributes:
        plan: asked before each step what shall go wrong in it; by default nothing ever does.
            `raise`: the step raises. `nan`: its tokens are not numbers. `short`: a token is missing.
            `hang`: it waits until `release` is set. `die`: the engine's thread ends. A number: so many seconds more.
        happened: what went wrong, in order, to show that it did.
    """

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self.plan: Callable[[Step], str | float | None] = lambda step: None
        self.release = threading.Event()
        self.happened: list[str | float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.executor, name)

    def run(self, step: Step) -> StepResult:
        fault = self.plan(step)
        if fault is None:
            result: StepResult = self.executor.run(step)
            return result
        self.happened.append(fault)
        if fault == "raise":
            raise Fault("the plan says so")
        if fault == "die":
            raise SystemExit("the engine's thread is gone")
        if fault == "hang":
            self.release.wait()
        elif isinstance(fault, float):
            threading.Event().wait(fault)
        result = self.executor.run(step)
        if fault == "nan":
            result.tokens = [float("nan") for _ in result.tokens]  # type: ignore[misc]
        elif fault == "short":
            result.tokens = result.tokens[:-1]
        return result


def once(fault: str | float, to: Callable[[Step], bool] = lambda step: True) -> Callable[[Step], str | float | None]:
    """A plan by which one step that `to` accepts goes wrong."""
    left = [fault]
    return lambda step: left.pop() if left and to(step) else None


def generating(step: Step) -> bool:
    """A step in which somebody already has tokens: in the middle of an answer."""
    return any(entry.sequence.generated for entry in step.entries)
