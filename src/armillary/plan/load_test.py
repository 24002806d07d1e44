"""The load test that checks a plan on a running server: what to send, what it should find, and doing it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from rich.console import Console

from armillary.errors import ArmillaryError, Code
from armillary.measure.intervals import Interval
from armillary.measure.presets import workload_of
from armillary.measure.punctual import run_punctually
from armillary.measure.report import Report
from armillary.plan.deployment_file import text
from armillary.plan.planner import Answer
from armillary.plan.question import Question, rate_text
from armillary.plan.trials import at_rate
from armillary.twin.here import HERE

METRICS = ("ttft p50", "ttft p95", "tpot p50", "tpot p95")
SECONDS = 180.0
FEWEST, MOST = 30, 50_000
"""Requests of the command; a test that is run here is as long as it is told to be."""


def command(found: Answer) -> str:
    """What sends it to a running server, in about three minutes or `MOST` requests."""
    spec = found.spec
    given = spec.model_dump(mode="json", exclude_unset=True, exclude={"rate", "requests", "workload"})
    flags = "".join(f" --{name.replace('_', '-')} {quote(str(value))}" for name, value in given.items())
    base = "" if spec.workload is None else f" --workload {quote(spec.workload)}"
    rate, requests = found.tested_rate, sent(found)
    return f"armillary bench{base}{flags} --rate {rate:.4g} --requests {requests} --slo '{found.question.slo}'"


def sent(found: Answer) -> int:
    """Requests of the command."""
    wanted = max(FEWEST, min(MOST, round(SECONDS * found.tested_rate)))
    return wanted if found.recorded is None else min(wanted, found.recorded)


def expected(found: Answer) -> dict[str, Interval]:
    """The interval that some figures of one more run must fall in, at 95 %."""
    figures, count = found.found.figures, len(found.found.replications)
    gaps = any(objective.metric == "itl" for objective in found.question.slo.objectives)
    return {name: figures[name].of_one(count) for name in (*METRICS, *(("itl p50", "itl p95") if gaps else ()))}


def check_possible(question: Question) -> None:
    """Refuse a load test of what is not at hand.

    Raises:
        ArmillaryError: INVALID_REQUEST.
    """
    if question.hardware.lower() != HERE:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"check must go with hardware that is at hand, given {question.hardware}, so plan for `here`, or send the "
            "load test of the plan to a server there",
            "check",
        )


def run(found: Answer, seconds: float = SECONDS, console: Console | None = None) -> Report:
    """Serve the planned deployment on this machine and send it the planned workload.

    Args:
        seconds: for which requests come.
        console: for a progress bar.

    Raises:
        ArmillaryError: INVALID_REQUEST where the plan is of other hardware or of several replicas; as `serving_file`
            and `bench` where the server does not start or answer.
    """
    from armillary.measure.bench import BenchOptions, bench  # which knows the client and its libraries
    from armillary.twin.served import serving_file  # which knows the engine, and torch

    check_possible(found.question)
    if found.design.replicas > 1:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"check must be of one replica, which is what this machine is, given a plan of {found.design.replicas}; "
            f"plan for at most {rate_text(found.knee.value / found.design.replicas)} requests/s",
            "check",
        )
    question = found.question
    rate = found.tested_rate
    spec = at_rate(found.spec, rate, question.spec.seed, max(FEWEST, round(seconds * rate)))
    deployment: Mapping[str, Any] = yaml.safe_load(text(found))
    keys = question.deployment.server.api_keys
    with (
        TemporaryDirectory(prefix="armillary-check-") as folder,
        serving_file(deployment, Path(folder)) as url,
    ):
        options = BenchOptions(url=url, slo=str(question.slo), api_key=keys[0] if keys else None)
        return run_punctually(bench(options, workload_of(spec), console))
