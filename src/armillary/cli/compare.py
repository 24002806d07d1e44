"""armillary compare"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from armillary.cli.output import console, print_json


def command(
    journal: Annotated[Path, typer.Argument(help="A journal that an engine wrote (`engine.journal`).")],
    other: Annotated[
        Path | None, typer.Argument(help="Another journal. Without it, the twin lives the first one again.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare the decisions of two journals, or of one and its twin.

    Prints the share of equal decisions, and the first that differs with what both decided and what was around it. Ends
    with status 0 where all are equal, and 1 where one is not.
    """
    from armillary.twin.compare import compare_files, tell

    found = compare_files(journal, other)
    if json:
        print_json([{**asdict(comparison), "share": comparison.share} for comparison in found])
    else:
        names = (journal.name, "the twin" if other is None else other.name)
        for comparison in found:
            console().print(tell(comparison, names), markup=False, soft_wrap=True)
    if any(comparison.divergence is not None for comparison in found):
        raise typer.Exit(1)
