"""armillary plan"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from armillary.cli.flags import Given, with_flags
from armillary.cli.output import console, print_json, print_table
from armillary.cli.serve import Target, deployment_from
from armillary.deployment import EngineSettings, checked
from armillary.errors import ArmillaryError, Code
from armillary.measure.synthesis import WorkloadSpec

if TYPE_CHECKING:
    from armillary.plan.planner import Answer


@with_flags(
    omit=("journal", "timeline_steps", "engine.seed", "spec.max_context", "spec.rate", "spec.requests", "spec.speed"),
    engine=EngineSettings,
    spec=WorkloadSpec,
)
def command(
    target: Target = None,
    hardware: Annotated[str, typer.Option(help="`here`, a name such as h100, or `help` for the list.")] = "here",
    slo: Annotated[str, typer.Option(help="Service level, as 'ttft p95 500ms, tpot p95 50ms'.")] = "ttft p95 1s",
    rate: Annotated[str | None, typer.Option(help="Requests to serve, such as 20/s; unset: as many as can be.")] = None,
    budget: Annotated[str | None, typer.Option(help="US dollars that may be spent, such as 10/h.")] = None,
    replications: Annotated[int, typer.Option(min=2, help="Simulations of the final answer.")] = 8,
    vary: Annotated[
        bool, typer.Option(help="Let single steps vary around their mean as they did when this machine was measured.")
    ] = True,
    out: Annotated[Path, typer.Option(help="Folder for deployment.yaml, plan.json and plan.html.")] = Path("plan"),
    json: Annotated[bool, typer.Option("--json", help="Print the resolved plan as JSON.")] = False,
    *,
    given: Given,
) -> None:
    """Choose a deployment, and say what it will do before it runs.

    Searches engine settings and numbers of replicas for the service level, then says how likely it holds, how much
    room is left, what limits it, what to change next, what it costs, and how to check all that. Writes the deployment
    file.
    """
    if hardware == "help":
        _list()
        return
    from armillary.measure.report import write_text
    from armillary.measure.slo import Slo
    from armillary.plan.plan_page import page
    from armillary.plan.planner import answer
    from armillary.plan.question import Question, parse_budget, parse_rate
    from armillary.plan.verdict import as_dict, sentences
    from armillary.twin.forecast_table import rows

    level = Slo.parse(slo)
    if any(objective.metric == "itl" for objective in level.objectives):
        raise ArmillaryError(
            Code.INVALID_REQUEST, "slo must be of ttft, tpot and e2e to be planned for, given itl", "slo"
        )
    question = Question(
        deployment_from(target, given),
        hardware,
        checked(WorkloadSpec, given["spec"]),
        level,
        None if rate is None else parse_rate(rate),
        None if budget is None else parse_budget(budget),
        replications,
        vary,
        tuple(given["engine"]),
    )
    found = _searched(question, answer)
    told = as_dict(found)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "deployment.yaml", _deployment(found))
    import json as writer

    write_text(out / "plan.json", writer.dumps(told, indent=1, sort_keys=True) + "\n")
    write_text(out / "plan.html", page(found))
    if json:
        print_json(told)
        return
    for head, text in sentences(found):
        console().print(f"[bold]{head}.[/bold]", end=" ")
        console().print(text, markup=False, soft_wrap=True)
    print_table("forecast", ["", "expected", "95 % interval"], rows(found.found))
    console().print(f"written: {out}/deployment.yaml, plan.json, plan.html", markup=False)


def _searched(question: object, answer: object) -> Answer:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description:<20}"), BarColumn(), TimeElapsedColumn(), console=console(stderr=True)
    ) as bar:
        tasks: dict[str, object] = {}

        def progress(what: str, share: float) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=1.0)
            bar.update(tasks[what], completed=share)  # type: ignore[arg-type]

        return answer(question, progress)  # type: ignore[operator, no-any-return]


def _deployment(found: Answer) -> str:
    """The file, with what was chosen and the KV blocks that were found spelled out."""
    import yaml

    deployment = found.design.deployment(found.question)
    values = deployment.model_dump(mode="json", exclude_unset=True)
    values.setdefault("engine", {}).update(
        {
            "max_running": found.deployed.kinds[0].config.max_running,
            "max_step_tokens": found.deployed.kinds[0].config.max_step_tokens,
            "kv_blocks": found.deployed.kinds[0].config.num_blocks,
        }
    )
    values["engine"].pop("kv_memory", None)
    values["models"] = [model.model_dump(mode="json", exclude_unset=True) for model in deployment.models]
    values["fleet"] = deployment.fleet.model_dump(mode="json", exclude_unset=True) if deployment.fleet else None
    text: str = yaml.safe_dump(values, sort_keys=False)
    return "# Written by `armillary plan`. `armillary serve` and `armillary simulate` take it as it is.\n" + text


def _list() -> None:
    from armillary.twin.hardware import known_hardware

    print_table(
        "hardware",
        ["name", "", "memory", "bandwidth"],
        [("here", "this machine, as `armillary profile` measured it", "", "")]
        + [(h.name, h.title, f"{h.memory_gb:g} GB", f"{h.bandwidth_gbs:g} GB/s") for h in known_hardware().values()],
    )
