"""armillary workload"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armillary.cli.flags import Given, with_flags
from armillary.cli.output import console, print_json, print_table
from armillary.deployment import checked
from armillary.measure.synthesis import WorkloadSpec

app = typer.Typer(no_args_is_help=True, help="Draw, convert and describe workloads.")


@app.command()
@with_flags(spec=WorkloadSpec)
def make(
    path: Annotated[Path, typer.Argument(help="Where to write the workload, as JSONL.", metavar="FILE")],
    *,
    given: Given,
) -> None:
    """Draw a workload, or convert and scale a recorded one, and write it as JSONL."""
    spec = checked(WorkloadSpec, given["spec"])

    from armillary.measure.presets import workload_of

    with console(stderr=True).status("writing"):
        workload = workload_of(spec)
        workload.write(path)
    console(stderr=True).print(f"{len(workload):,} requests written to {path}")


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="A workload, or a trace of Azure's or Mooncake's.", metavar="FILE")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is in a workload: how many, how fast, how long, how much shared."""
    from armillary.measure.portrait import portrait
    from armillary.measure.traces import read_workload

    drawn = portrait(read_workload(path))
    if json:
        print_json(drawn)
    else:
        print_table(str(path), ["", ""], drawn.rows())
