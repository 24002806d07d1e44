"""armillary simulate"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from armillary.cli.flags import Given, with_flags
from armillary.cli.output import console, print_json, print_table
from armillary.cli.serve import Target, deployment_from
from armillary.deployment import Deployment, EngineSettings, FleetSettings, checked
from armillary.measure.synthesis import WorkloadSpec

if TYPE_CHECKING:
    from armillary.plan.again import Recorded


@with_flags(
    omit=("journal", "timeline_steps", "packed_cache", "forced_tokens", "engine.seed"),
    engine=EngineSettings,
    spec=WorkloadSpec,
)
def command(
    target: Target = None,
    hardware: Annotated[
        str | None, typer.Option(help="What the replicas run on: `here`, h100, ...; unset: as the deployment says.")
    ] = None,
    replicas: Annotated[int | None, typer.Option(help="How many replicas; unset: as the deployment says.")] = None,
    route: Annotated[str | None, typer.Option(help="How requests are spread over them.")] = None,
    slo: Annotated[str, typer.Option(help="Service level, as 'ttft p95 500ms, tpot p95 50ms'.")] = "",
    replications: Annotated[
        int, typer.Option(min=1, help="Simulations, each with luck of its own; with --precision, the fewest.")
    ] = 5,
    precision: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Simulate until the service level's figures (without one, p95 of TTFT and TPOT) are known to this "
            "share of themselves, such as 0.05.",
        ),
    ] = None,
    doubt: Annotated[
        bool, typer.Option(help="Let each replication's machine be as much slower or faster as the prediction may err.")
    ] = True,
    vary: Annotated[
        bool, typer.Option(help="Let single steps vary around their mean as they did when this machine was measured.")
    ] = True,
    until: Annotated[float | None, typer.Option(min=0, help="Seconds after which no request comes.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    *,
    given: Given,
) -> None:
    """Say what a deployment will do under a workload, without running it.

    The scheduler that serves decides every step; how long steps take is fitted to this machine (`armillary profile`) or
    assumed from a data sheet. Every figure has the interval that replications and the doubt about the machine give it.
    """
    spec = checked(WorkloadSpec, given["spec"])
    deployment = with_fleet(deployment_from(target, given), hardware, replicas, route)
    predict(
        deployment, spec, slo, replications=replications, doubt=doubt, vary=vary, until=until, precision=precision,
        json=json,
    )  # fmt: skip


def predict(
    deployment: Deployment,
    spec: WorkloadSpec,
    slo: str,
    *,
    replications: int,
    doubt: bool,
    vary: bool,
    until: float | None,
    json: bool,
    precision: float | None = None,
    recorded: Recorded | None = None,
) -> None:
    """Simulate a deployment under a workload, and print what was found, beside what was recorded if anything was."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from armillary.measure.presets import workload_of
    from armillary.measure.slo import Slo
    from armillary.plan.busiest import is_file
    from armillary.plan.fleet_estimate import beside
    from armillary.twin.deployed import Deployed
    from armillary.twin.forecast import forecast
    from armillary.twin.forecast_table import about, as_dict, rows

    level = Slo.parse(slo) if slo else Slo()
    with Progress(
        TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console(stderr=True)
    ) as bar:
        task = bar.add_task("", total=replications if precision is None else None)
        deployed = Deployed(deployment, vary)
        found = forecast(
            deployed,
            spec,
            level,
            replications=replications,
            doubt=doubt,
            until=float("inf") if until is None else until,
            precision=precision,
            progress=lambda: bar.advance(task),
        )
    figures = None if recorded is None else recorded.figures
    if json:
        print_json(as_dict(deployed, found, figures))
        return
    columns = ["", "expected", "95 % interval"] if recorded is None else ["", "recorded", "expected", "95 % interval"]
    print_table("forecast", columns, rows(found, figures))
    notes = () if recorded is None else recorded.notes
    if is_file(spec):
        notes = (
            *notes,
            "every replication is of the same requests, those of the file: intervals are not over their luck",
        )
    workload = workload_of(spec)
    judged = bool(level.objectives or workload.slo_classes)
    for line in (*about(deployed, found, judged), *beside(deployed, workload), *notes):
        console().print(line, markup=False)


def with_fleet(deployment: Deployment, hardware: str | None, replicas: int | None, route: str | None) -> Deployment:
    """The deployment with flags laid over its fleet.

    Raises ArmillaryError: INVALID_DEPLOYMENT.
    """
    fleet = deployment.fleet or FleetSettings()
    group: dict[str, Any] = {}
    if hardware is not None:
        group["hardware"] = hardware
    if replicas is not None:
        group["count"] = replicas
    values: dict[str, Any] = fleet.model_dump(exclude_unset=True)
    if group:
        first, *others = [kind.model_dump(exclude_unset=True) for kind in fleet.replicas]
        values["replicas"] = [{**first, **group}, *others]
    if route is not None:
        values["route"] = route
    return deployment.model_copy(update={"fleet": checked(FleetSettings, values)})
