"""armillary profile"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from armillary.cli.flags import Given, with_flags
from armillary.cli.output import console, print_json, print_table
from armillary.deployment import EngineSettings, checked
from armillary.measure.place import check_place
from armillary.twin.profile_settings import ProfileSettings

if TYPE_CHECKING:
    from armillary.twin.fit import Sum
    from armillary.twin.fitted import FittedCost
    from armillary.twin.profile import Profile

LABELS = {
    "machine": "memory and matrix products",
    "steps": "designed steps",
    "engine": "the engine under load",
    "server": "a server with clients",
}


@with_flags(omit=("journal", "timeline_steps"), profile=ProfileSettings, engine=EngineSettings)
def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a hub id, or `isles`.")] = "isles",
    out: Annotated[Path | None, typer.Option(help="Where to keep it; unset: in the cache folder of this user.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a plot of the fit's errors to this file (SVG).")] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what was measured before.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    *,
    given: Given,
) -> None:
    """Measure what a model costs on this machine, so that the twin can predict it.

    Times steps of the real engine, what passes between them, and a server with clients. A run that is
    interrupted goes on where it stopped. Nothing else should run meanwhile: what disturbs the measurement is taken for
    the machine's own.
    """
    settings = checked(ProfileSettings, given["profile"])
    engine = checked(EngineSettings, given["engine"])
    check_place(out, "out")
    check_place(plot, "plot")
    with console(stderr=True).status("Loading"):
        from armillary.models.locate import locate

        folder = locate(model)

        from armillary.twin.fitted import FittedCost
        from armillary.twin.profiling import measure_profile

    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description:<28}"), BarColumn(), TimeElapsedColumn(), console=console(stderr=True)
    ) as bar:
        tasks = {phase: bar.add_task(label, total=1.0) for phase, label in LABELS.items()}
        profile, path = measure_profile(
            model, folder, engine, settings, out, lambda phase, share: bar.update(tasks[phase], completed=share), again
        )
        for phase in profile.done:
            bar.update(tasks[phase], completed=1.0)
    cost = FittedCost(profile)
    if plot is not None:
        from armillary.measure.report import write_text
        from armillary.twin.residuals import residual_svg

        write_text(plot, residual_svg(cost))
    if json:
        print_json({"file": path, **_report(cost)})
    else:
        _show(profile, cost, path)


def _report(cost: FittedCost) -> dict[str, object]:
    """What was found, for programs."""
    from armillary.twin.hull import NAMES

    fits = (("designed", cost.designed), ("step", cost.loaded), ("between", cost.between))
    return {
        "name": cost.name,
        "through": cost.through,
        **{
            name: {"seconds": _parts(fit.sum), "error": dict(zip(("median", "p95"), fit.error, strict=True))}
            for name, fit in fits
            if fit.errors
        },
        "request_s": {"each": cost.request_s(0), "of 1000 tokens": cost.request_s(1000)},
        "first_s": cost.first_s,
        "spread": cost.spread and cost.spread.model_dump(),
        "hull": dict(zip(NAMES, cost.hull.counts, strict=True)),
    }


def _parts(found: Sum) -> dict[str, float]:
    from armillary.twin.fit import PARTS

    return dict(zip(PARTS, found.parts, strict=True)) | {knee.name: value for knee, value in found.knees}


def _show(profile: Profile, cost: FittedCost, path: Path) -> None:
    from armillary.twin.work import StepWork

    designed, loaded = cost.designed.error, cost.loaded.error
    one = StepWork(1, 1, 1, 200, 200)
    rows = [(f"each {part}", f"{1e6 * seconds:,.3f} µs", "") for part, seconds in _parts(cost.loaded.sum).items()]
    rows += [
        ("one token of one sequence", f"{1e3 * cost.step_s(one):.3f} ms", f"under load, through the {cost.through}"),
        ("between two steps", f"{1e6 * cost.between_s(one):.0f} µs", "one sequence"),
        ("a request of 200 tokens", f"{1e3 * cost.request_s(200):.2f} ms", "beside the engine: HTTP and tokenizing"),
        ("its first token", f"{1e3 * cost.first_s:.2f} ms", "longer on its way than the last"),
        ("error, designed steps", f"{designed[0]:.1%}", f"median, each left out; p95 {designed[1]:.1%}"),
        (
            "error, steps under load",
            f"{loaded[0]:.1%}",
            f"means of like ones, left out by fifths: median; p95 {loaded[1]:.1%}",
        ),
    ]
    if cost.spread is not None:
        short = cost.spread.factors[0]
        few = len(short) // 100
        varies = f"{short[few]:.2g} to {short[-1 - few]:.2g} times"
        rows.append(
            ("equal short steps", varies, f"98 of 100; agree by {cost.spread.agreement(10, 1e-3):.2f} 10 ms later")
        )
    sequences, tokens, _, context, _ = cost.hull.counts
    print_table(
        profile.name,
        ["", "", ""],
        [row for row in rows if row[1] != "0.000 µs"],
        caption=f"Measured: {len(profile.steps)} designed steps of {sequences[0]} to {sequences[1]} sequences, "
        f"{tokens[0]} to {tokens[1]} tokens, {context[0]} to {context[1]} positions of context. Kept in {path}.",
    )
