"""armillary claims"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.output import console, print_json, print_table


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Which, or patterns such as 'twin-*'; all where none is named."),
    ] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Only list them.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds, over which the spread is shown.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the workloads.")] = 0,
    write: Annotated[bool, typer.Option("--write", help="Write docs/claims.md as well.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure published results again.

    Each is one file in claims/, with a rule for its verdict that was fixed before anything was measured.
    """
    from armillary.measure.claims import ClaimResult, Trial, choose, load_claims, run_claim, write_page

    chosen = choose(load_claims(), names or [])
    if list_only:
        if json:
            print_json([{"name": claim.name, "title": claim.title, "venue": claim.venue} for claim in chosen])
        else:
            print_table("Claims", ["name", "literature", "holds if"],
                        [(claim.name, f"{claim.title}, {claim.venue}", claim.rule) for claim in chosen])  # fmt: skip
        return
    results: list[ClaimResult] = []
    remarks = console(stderr=True)
    with remarks.status("") as status:

        def show(text: str) -> None:
            if text.startswith("Traceback"):
                remarks.print(text, markup=False)
            else:
                status.update(escape(f"{chosen[len(results)].name} ({len(results) + 1} of {len(chosen)}): {text}"))

        for claim in chosen:
            show("setting up")
            results.append(run_claim(claim, Trial(repeats, seed, show)))
    if write:
        write_page(results)
    if json:
        print_json([result.model_dump() for result in results])
    else:
        print_table("Claims", ["name", "literature", "verdict", "result"],
                    [(r.name, f"{r.title}, {r.venue}", r.verdict, r.result) for r in results])  # fmt: skip
