"""armillary experiment"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armillary.cli.output import console, print_json, print_table


def command(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What to vary, between what, and what to explain (YAML).")
    ],
    list_only: Annotated[bool, typer.Option("--list", help="Only say what would be run and what it can tell.")] = False,
    runs: Annotated[
        Path | None,
        typer.Option("--runs", metavar="FILE", help="Where runs are kept. Unset: FILE with the ending .runs.jsonl."),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Save a page with plots.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find out which settings matter, and which do not.

    Runs a designed experiment on the twin or on the real engine. What was run is kept, and not run again.
    """
    from armillary.measure.place import check_place
    from armillary.plan.answers import effect_rows
    from armillary.plan.conduct import conduct, prepare
    from armillary.plan.report import save_page

    prepared = prepare(file)
    check_place(html, "html")
    if list_only:
        if json:
            print_json({"said": prepared.said, "runs": [run.point for run in prepared.runs]})
        else:
            for line in prepared.said:
                console().print(line, markup=False)
        return
    found = conduct(prepared, runs or file.with_suffix(".runs.jsonl"), console(stderr=True))
    if html is not None:
        save_page(found, html)
    if json:
        print_json(found.as_dict())
        return
    out = console()
    for line in found.about:
        out.print(line, markup=False, soft_wrap=True)
    for analysis, told in zip(found.analyses, found.answers, strict=True):
        out.print(f"[bold]{told.title}[/bold]")
        for line in (*told.matters, *told.rest, *told.advice, *told.trust):
            out.print(line, markup=False, soft_wrap=True)
        print_table(
            f"Effects on {told.response}",
            ["effect of", "size", "95 %", "p", "of variation"],
            effect_rows(analysis),
            caption="from the low level to the high one; p accounts for there being several effects",
        )
