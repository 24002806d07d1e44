"""armillary train"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armillary.cli.output import console, print_json, print_table

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def _train() -> None:
    """Train a model."""


@app.command()
def isles(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the model is written.")] = Path("isles"),
    minutes: Annotated[
        float | None, typer.Option(min=0, metavar="NUMBER", help="Stop after so many minutes of training.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="INT", help="Optimizer steps. Unset: as for the bundled model.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in FOLDER, where there is one.")] = True,
    seed: Annotated[int, typer.Option(min=0, metavar="INT", help="Of the text and of the first weights.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train tokenizer and model of the Isles, from nothing to a folder that serves."""
    from armillary.train.isles import train_isles

    report = train_isles(out, minutes=minutes, steps=steps, resume=resume, seed=seed, console=console(stderr=True))
    if json:
        print_json(report)
        return
    levels = report["levels"].items()
    print_table(f"{out}: held-out tasks answered token for token", ["task", "level"],
                [(name, f"{level:.1%}") for name, level in levels],
                caption=f"{report['count']} of each; {report['seconds'] / 60:.0f} minutes of training.")  # fmt: skip
