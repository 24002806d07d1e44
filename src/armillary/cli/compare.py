"""armillary compare"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from armillary.cli.output import console, print_json, print_table
from armillary.errors import ArmillaryError, Code


def command(
    first: Annotated[Path, typer.Argument(help="A journal, or a prediction.", metavar="FILE")],
    second: Annotated[
        Path | None,
        typer.Argument(
            help="Another journal, or an observation. Without it, the twin lives the first journal again.",
            metavar="OTHER",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="Deviation, as a share, that counts as inside whatever the interval. Unset: 0.02."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare a prediction with an observation, or the decisions of journals.

    A prediction is what `simulate --json` printed, or a plan.json; an observation is what `bench --json` printed, or a
    journal. For each figure: what was predicted and where one run should lie, what was observed and its own interval,
    the deviation, and inside or outside. Two observations or predictions are compared alike.

    Of two journals, or of one and its twin: the share of equal decisions, and the first that differs with what both
    decided and what was around it.

    Ends with status 0 where nothing is outside and all decisions are equal, and 1 where something is or one is not.
    """
    from armillary.plan.against import is_journal

    if is_journal(first) and (second is None or is_journal(second)):
        if tolerance is not None:
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                f"tolerance must be left out where decisions are compared, which are equal or not; given {tolerance}",
                "tolerance",
            )
        _decisions(first, second, json)
    else:
        _figures(first, second, 0.02 if tolerance is None else tolerance, json)


def _decisions(first: Path, second: Path | None, json: bool) -> None:
    from armillary.twin.compare import compare_files, tell

    found = compare_files(first, second)
    if json:
        print_json([{**asdict(comparison), "share": comparison.share} for comparison in found])
    else:
        names = (first.name, "the twin" if second is None else second.name)
        for comparison in found:
            console().print(tell(comparison, names), markup=False, soft_wrap=True)
    if any(comparison.divergence is not None for comparison in found):
        raise typer.Exit(1)


def _figures(first: Path, second: Path | None, tolerance: float, json: bool) -> None:
    from armillary.plan.against import against, as_dict, lines, paired

    one, other = paired(first, second)
    rows = against(one, other, tolerance)
    told = as_dict(one, other, rows)
    if json:
        print_json(told)
    else:
        print_table(
            "",
            ["", one.name, one.interval, other.name, other.interval, "off", ""],
            lines(rows),
            caption=f"Intervals of 95 %, in ms unless they say else. What is off by {tolerance:.1%} or less is inside.",
        )
        for note in told["notes"]:
            console().print(note, markup=False, soft_wrap=True)
    if told["outside"]:
        raise typer.Exit(1)
