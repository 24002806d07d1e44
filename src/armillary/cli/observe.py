"""armillary observe"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from armillary.cli.flags import refuse_given
from armillary.cli.output import console
from armillary.errors import ArmillaryError, Code

if TYPE_CHECKING:
    from armillary.measure.workload import Workload

SECONDS = 60.0


def command(
    source: Annotated[
        str,
        typer.Argument(
            help="The journal that a server writes (`engine.journal`), or the URL of a running server.",
        ),
    ],
    workload: Annotated[Path, typer.Argument(help="Where to write the workload, as JSONL.", metavar="FILE")],
    last: Annotated[
        float | None, typer.Option(min=0, help="Of a journal: take only what came in its last so many seconds.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help=f"Of a URL: how long to observe. Unset: {SECONDS:g}.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of a URL: take only what is asked of this model.")] = None,
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", envvar="ARMILLARY_API_KEY", help="Key for the server.")
    ] = None,
) -> None:
    """Make a workload of what a server was asked, while it runs or afterwards.

    Lengths, moments and what prompts share are kept; what they say is not. `bench` sends the workload again, `simulate`
    and `plan` ask what another deployment would do with it. A journal tells which prompts begin alike; a server, asked
    by its URL, only how much of each it found in its cache, which all prompts are then taken to begin with.
    """
    if source.startswith(("http://", "https://")):
        refuse_given({"last": last}, "must be left out with a URL: only what comes from now on is observed")
        found = _overhear(source, SECONDS if seconds is None else seconds, model, api_key)
    else:
        of_url = {"seconds": seconds, "model": model}
        refuse_given(of_url, "must come with the URL of a server, not with a journal")
        found = _read(Path(source), workload, last)
    found.write(workload)
    console(stderr=True).print(f"{len(found):,} requests written to {workload}", markup=False)


def _read(journal: Path, workload: Path, last: float | None) -> Workload:
    if workload.exists() and journal.exists() and workload.samefile(journal):
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"the workload must be another file than the journal, which it would replace, given {str(workload)!r}",
            "workload",
        )
    from armillary.measure.journal import read_journal
    from armillary.measure.observed import observed

    return observed(read_journal(journal)[-1], last)


def _overhear(url: str, seconds: float, model: str | None, api_key: str | None) -> Workload:
    import asyncio

    from rich.progress import Progress

    from armillary.measure.overheard import overheard

    with Progress(console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("Observing", total=1.0)
        return asyncio.run(overheard(url, seconds, model, api_key, lambda share: bar.update(task, completed=share)))
