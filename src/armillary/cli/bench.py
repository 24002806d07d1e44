"""armillary bench"""

from __future__ import annotations

import json as reader
from typing import Annotated, Any

import typer

from armillary.cli.flags import Given, with_flags
from armillary.cli.output import console
from armillary.deployment import checked
from armillary.errors import ArmillaryError, Code
from armillary.measure.bench import BenchOptions


@with_flags(options=BenchOptions)
def command(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False, *, given: Given) -> None:
    """Measure a server under load.

    Any OpenAI-compatible server. Latencies count from the moment a request was due, so that a slow server cannot
    hide behind a waiting client. --json-path and --html-path save the report; --json prints it.
    """
    measure(given["options"], json)


def measure(given: dict[str, Any], json: bool) -> None:
    """Measure with options as flags give them, and print the report."""
    values = dict(given)
    if "extra_body" in values:
        try:
            values["extra_body"] = reader.loads(values["extra_body"])
        except ValueError:
            raise ArmillaryError(
                Code.INVALID_DEPLOYMENT, f"--extra-body must be a JSON object, given {values['extra_body']!r}"
            ) from None
    options = checked(BenchOptions, values)

    from armillary.measure.bench import run_bench
    from armillary.measure.table import show

    report = run_bench(options, console(stderr=True))
    if json:
        print(report.model_dump_json(indent=2))
    else:
        show(report, console())
