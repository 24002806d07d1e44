"""armillary replay"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armillary.cli.bench import measure
from armillary.cli.flags import Given, refuse_given, with_flags
from armillary.cli.serve import Target, deployment_from
from armillary.cli.simulate import predict, with_fleet
from armillary.deployment import EngineSettings, checked
from armillary.measure.bench import BenchOptions
from armillary.measure.synthesis import WorkloadSpec

_OF_FILE = ("requests", "rate", "speed", "volume", "seed")
_DRAWN = tuple(name for name in WorkloadSpec.model_fields if name not in _OF_FILE)


class _Client(BenchOptions):
    """Replaying: how much of the file and how fast, and with --url the client."""


@with_flags(
    omit=("journal", "timeline_steps", "packed_cache", "forced_tokens", "engine.seed", "url", "slo", *_DRAWN),
    engine=EngineSettings,
    client=_Client,
)
def command(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="What was recorded: a server's journal, a workload, or a trace of Azure's or Mooncake's.",
            exists=True,
            dir_okay=False,
        ),
    ],
    target: Target = None,
    url: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The server to send it to. Unset: the twin answers.")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="What the twin's replicas run on: `here`, h100, ...; unset: as the deployment.")
    ] = None,
    replicas: Annotated[int | None, typer.Option(help="How many replicas; unset: as the deployment says.")] = None,
    route: Annotated[str | None, typer.Option(help="How requests are spread over them.")] = None,
    slo: Annotated[str, typer.Option(help="Service level, as 'ttft p95 500ms, tpot p95 50ms'.")] = "",
    replications: Annotated[int | None, typer.Option(min=1, help="Simulations of the twin. Unset: 5.")] = None,
    doubt: Annotated[
        bool | None,
        typer.Option(help="Let each simulation's machine be as much slower or faster as the prediction may err."),
    ] = None,
    vary: Annotated[
        bool | None,
        typer.Option(help="Let single steps vary around their mean as they did when this machine was measured."),
    ] = None,
    until: Annotated[float | None, typer.Option(min=0, help="Seconds after which no request comes.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    *,
    given: Given,
) -> None:
    """Send recorded requests again, to a server or to the twin of another.

    With --url they are sent as they came, or --speed times as fast, and reported as `bench` does. Without, the twin
    says what they would have met under these settings; of a journal, beside what was recorded. Settings that a journal
    knows are taken from it, unless a deployment file or a flag says otherwise.
    """
    of_twin = {"target": target, "hardware": hardware, "replicas": replicas, "route": route, "until": until}
    of_twin |= {"replications": replications, "doubt": doubt, "vary": vary, **given["engine"]}
    asked = {name: value for name, value in given["client"].items() if name in _OF_FILE}
    source = {**asked, "workload": str(file.resolve())}
    if url is not None:
        refuse_given(of_twin, "must be left out with --url: what answers is the server there")
        measure({**given["client"], **source, "url": url, "slo": slo}, json)
        return
    of_client = {name: value for name, value in given["client"].items() if name not in _OF_FILE}
    refuse_given(of_client, "must come with --url, the server to send requests to; without, the twin answers")

    from armillary.plan.again import recorded

    found = recorded(file)
    if found is not None and Path(target or "").suffix not in {".yaml", ".yml"}:
        # So many blocks are of that machine's memory, and of that size.
        other = (hardware or "here").lower() != "here" or {"kv_memory", "block_size"} & given["engine"].keys()
        kept = {
            name: value for name, value in found.settings_for(target).items() if not (other and name == "kv_blocks")
        }
        given = {**given, "engine": {**kept, **given["engine"]}}
    deployment = with_fleet(deployment_from(target, given), hardware, replicas, route)
    spec = checked(WorkloadSpec, source)
    predict(
        deployment,
        spec,
        slo,
        replications=5 if replications is None else replications,
        doubt=doubt is not False,
        vary=vary is not False,
        until=until,
        json=json,
        recorded=found,
    )
