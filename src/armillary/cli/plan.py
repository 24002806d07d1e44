"""armillary plan"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from armillary.cli.flags import Given, with_flags
from armillary.cli.output import console, print_json, print_table
from armillary.cli.serve import Target, deployment_from
from armillary.deployment import EngineSettings, checked
from armillary.errors import ArmillaryError, Code
from armillary.measure.synthesis import WorkloadSpec

if TYPE_CHECKING:
    from armillary.plan.against import Row
    from armillary.plan.planner import Answer


@with_flags(
    omit=("journal", "timeline_steps", "engine.seed", "spec.max_context", "spec.rate", "spec.requests", "spec.speed"),
    engine=EngineSettings,
    spec=WorkloadSpec,
)
def command(
    target: Target = None,
    model: Annotated[str | None, typer.Option(help="The same as MODEL|FILE.")] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            help="`here`, a name such as h100, or `help` for the list. Unset: as the deployment file says, or here."
        ),
    ] = None,
    slo: Annotated[
        str | None, typer.Option(help="Service level, as 'ttft p95 500ms, tpot p95 50ms'. Unset: ttft p95 1s.")
    ] = None,
    rate: Annotated[str | None, typer.Option(help="Requests to serve, such as 20/s; unset: as many as can be.")] = None,
    budget: Annotated[str | None, typer.Option(help="US dollars that may be spent, such as 10/h.")] = None,
    price: Annotated[
        str | None, typer.Option(help="US dollars of one device, such as 0.10/h. Unset: as its data sheet says.")
    ] = None,
    power: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e6, help="Watts of one device at full load. Unset: as its data sheet says."),
    ] = None,
    replications: Annotated[
        int | None, typer.Option(min=2, max=1000, help="Simulations of the final answer. Unset: 8.")
    ] = None,
    vary: Annotated[
        bool | None,
        typer.Option(help="Let single steps vary around their mean as they did when this machine was measured."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for deployment.yaml, plan.json and plan.html.")] = Path("plan"),
    check: Annotated[
        bool,
        typer.Option(help="Serve the plan here, send it the planned workload for three minutes, and compare."),
    ] = False,
    check_seconds: Annotated[
        float | None,
        typer.Option(min=1, max=86_400, help="Seconds of --check for which requests come, instead of 180."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="That simulate side by side; unset: as many as processors. The plan stays the same."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the resolved plan as JSON.")] = False,
    *,
    given: Given,
) -> None:
    """Choose a deployment, and say what it will do before it runs.

    Searches engine settings and numbers of replicas for the service level, then says how likely it holds, how much
    room is left, what limits it, what to change next, what it costs, and how to check all that. Writes the deployment
    file. A plan.json instead of a model asks its question again.

    With --check, it then serves it on this machine and says of each metric whether it fell in its interval.
    """
    if hardware == "help":
        _list()
        return
    if target is not None and model is not None:
        given_twice = f"model must be given once, as MODEL|FILE or as --model, given {target!r} and {model!r}"
        raise ArmillaryError(Code.INVALID_REQUEST, given_twice, "model")
    from armillary.measure.place import check_folder
    from armillary.measure.plain import plain
    from armillary.measure.report import write_text
    from armillary.measure.slo import Slo
    from armillary.plan import load_test
    from armillary.plan.basis import basis, changes, rooted
    from armillary.plan.crew import processors
    from armillary.plan.deployment_file import text as deployment_text
    from armillary.plan.plan_page import page
    from armillary.plan.planner import answer
    from armillary.plan.question import Question, again, parse_budget, parse_price, parse_rate
    from armillary.plan.verdict import as_dict

    asked = {"hardware": hardware, "slo": slo, "rate": rate, "budget": budget, "price": price, "power": power}
    asked |= {"replications": replications, "vary": vary, **given["engine"], **given["spec"]}
    kept = again(target or model, asked)
    if kept is not None:
        question, before = kept
        if news := changes(before, basis(question)):
            console(stderr=True).print(
                f"The answer may differ from that of {target or model}: {'; '.join(news)}.", markup=False
            )
    else:
        deployment = deployment_from(target or model, given)
        named = deployment.fleet.replicas[0].hardware if deployment.fleet else "here"
        question = rooted(
            Question(
                deployment,
                hardware or named,
                checked(WorkloadSpec, given["spec"]),
                Slo.parse("ttft p95 1s" if slo is None else slo),
                None if rate is None else parse_rate(rate),
                None if budget is None else parse_budget(budget),
                replications or 8,
                vary is not False,
                tuple(given["engine"]),
                None if price is None else parse_price(price),
                power,
            )
        )
    if check:
        load_test.check_possible(question)
    elif check_seconds is not None:
        raise ArmillaryError(Code.INVALID_REQUEST, "check_seconds must come with --check, given it alone", "check")
    check_folder(out, "out")
    with _progress() as progress:
        found = answer(question, progress, processes or processors())
    told = as_dict(found)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "deployment.yaml", deployment_text(found))
    import json as writer

    write_text(out / "plan.json", writer.dumps(plain(told), indent=1, sort_keys=True) + "\n")
    write_text(out / "plan.html", page(found))
    if json and not check:
        print_json(told)
    elif not json:
        _say(found, out)
    if check:
        from armillary.plan import against

        report = load_test.run(found, check_seconds or load_test.SECONDS, console(stderr=True))
        report.save(out / "load.json")
        compared = against.against(*against.paired(out / "plan.json", out / "load.json"))
        if json:
            print_json(told | {"check": compared})
        else:
            _say_checked(compared)


def _say(found: Answer, out: Path) -> None:
    from armillary.plan.verdict import forecast_title, sentences
    from armillary.twin.forecast_table import rows

    for head, text in sentences(found, quote(str(out / "plan.json"))):
        console().print(f"[bold]{head}.[/bold]", end=" ")
        console().print(text, markup=False, soft_wrap=True)
    print_table(forecast_title(found), ["", "expected", "95 % interval"], rows(found.found))
    console().print(f"written: {out}/deployment.yaml, plan.json, plan.html", markup=False)


def _say_checked(compared: list[Row]) -> None:
    from armillary.plan.against import lines

    print_table(
        "load test",
        ["", "predicted", "one run", "observed", "interval", "off", ""],
        lines(compared),
        caption="Intervals of 95 %, in ms unless they say else.",
    )
    inside = sum(row.verdict == "inside" for row in compared)
    console().print(f"{inside} of {len(compared)} figures fell inside of their intervals.")


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A bar for each part of the work."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description:<20}"), BarColumn(), TimeElapsedColumn(), console=console(stderr=True)
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(what: str, share: float) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=1.0)
            bar.update(tasks[what], completed=share)

        yield progress


def _list() -> None:
    from armillary.twin.hardware import known_hardware

    print_table(
        "hardware",
        ["name", "", "memory", "bandwidth"],
        [("here", "this machine, as `armillary profile` measured it", "", "")]
        + [(h.name, h.title, f"{h.memory_gb:g} GB", f"{h.bandwidth_gbs:g} GB/s") for h in known_hardware().values()],
    )
