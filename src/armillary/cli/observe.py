"""armillary observe"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armillary.cli.output import console
from armillary.errors import ArmillaryError, Code


def command(
    journal: Annotated[Path, typer.Argument(help="The journal that a server writes (`engine.journal`).")],
    workload: Annotated[Path, typer.Argument(help="Where to write the workload, as JSONL.", metavar="FILE")],
    last: Annotated[
        float | None, typer.Option(min=0, help="Take only what came in the journal's last so many seconds.")
    ] = None,
) -> None:
    """Make a workload of what a server was asked, while it runs or afterwards.

    Lengths, moments and what prompts share are kept; what they say is not. `bench` sends the workload again, `simulate`
    and `plan` ask what another deployment would do with it.
    """
    if workload.exists() and journal.exists() and workload.samefile(journal):
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"the workload must be another file than the journal, which it would replace, given {str(workload)!r}",
            "workload",
        )
    from armillary.measure.journal import read_journal
    from armillary.measure.observed import observed

    found = observed(read_journal(journal)[-1], last)
    found.write(workload)
    console(stderr=True).print(f"{len(found):,} requests written to {workload}", markup=False)
