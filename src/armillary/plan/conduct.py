"""From an experiment's file to its findings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from armillary.plan.answers import describe
from armillary.plan.design import Design
from armillary.plan.experiment import (
    Experiment,
    Response,
    Run,
    observe,
    plan_runs,
    read_experiment,
    settle,
    take_runs,
)
from armillary.plan.factors import Factor
from armillary.plan.figures import figure
from armillary.plan.report import Findings, find


@dataclass(frozen=True)
class Prepared:
    """An experiment that is known to be possible: every run's settings were checked."""

    experiment: Experiment
    design: Design
    factors: tuple[Factor, ...]
    runs: tuple[Run, ...]

    @property
    def said(self) -> list[str]:
        """What will be run, and what it can tell."""
        return describe(self.design, self.factors, len(self.runs))


def prepare(path: str | Path) -> Prepared:
    """Read an experiment and check all that it will run, before anything is.

    Raises:
        ArmillaryError: INVALID_REQUEST or INVALID_DEPLOYMENT.
    """
    experiment = read_experiment(path)
    factors, design = tuple(experiment.factor_list()), experiment.make_design()
    experiment.service_level()
    for name in experiment.responses:
        figure(name)
    runs = plan_runs(experiment, design)
    for run in runs[: len(design.rows)]:
        settle(experiment, run.point)
    return Prepared(experiment, design, factors, tuple(runs))


def conduct(prepared: Prepared, record: Path, console: Console | None = None) -> Findings:
    """Take the runs that `record` does not hold yet, and explain them.

    Args:
        console: where the progress bar is drawn; None: no progress bar.
    """
    with _subject(prepared) as (response, about), _bar(console) as bar:
        task = bar.add_task("runs", total=len(prepared.runs))
        values = take_runs(
            prepared.experiment, prepared.runs, response, record, lambda count: bar.update(task, completed=count)
        )
    return find(prepared.experiment, prepared.design, observe(prepared.factors, prepared.runs, values), about)


@contextlib.contextmanager
def _subject(prepared: Prepared) -> Iterator[tuple[Response, list[str]]]:
    """What answers, and where its answers come from."""
    if prepared.experiment.target == "twin":
        from armillary.plan.twin_subject import Twin

        twin = Twin(prepared.experiment)
        yield twin, twin.predicted_by(prepared.runs[0].point)
        return
    from armillary.plan.engine_subject import ServedEngine

    with ServedEngine(prepared.experiment) as served:
        yield served, ["Measured on the real engine."]


def _bar(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=console is None,
        transient=True,
        refresh_per_second=4,
    )
