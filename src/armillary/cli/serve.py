"""armillary serve"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer

from armillary import IMPORTED_AT
from armillary.cli.flags import Given, with_flags
from armillary.deployment import Deployment, EngineSettings, ModelSettings, ServerSettings, build
from armillary.runtime.stopwatch import Stopwatch, process_began

Target = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL|FILE",
        help="A folder in Hugging Face layout, a hub id, `isles` for the bundled model, or a deployment file (.yaml). "
        "Unset: isles.",
    ),
]


def deployment_from(target: str | None, given: Given) -> Deployment:
    """The deployment that a command line describes: a file or a model, with flags laid over it."""
    model = dict(given.get("model", {}))
    path: str | None = None
    if target is not None and Path(target).suffix in {".yaml", ".yml"}:
        path = target
    elif target is not None:
        model["path"] = target
    return build(path, model=model, engine=given.get("engine"), server=given.get("server"))


@with_flags(omit=("path", "engine"), model=ModelSettings, engine=EngineSettings, server=ServerSettings)
def command(target: Target = None, *, given: Given) -> None:
    """Serve a model behind an OpenAI-compatible API.

    Prints the memory and speed plan, then the URL. Every flag is a field of the deployment file; flags win over
    the file. Ctrl-C or SIGTERM lets running requests finish.
    """
    gc.disable()  # until the server is ready: modules are no garbage, and looking for it takes a tenth of the start
    watch = Stopwatch("interpreter", process_began())
    watch.begin("command line", at=IMPORTED_AT)
    deployment = deployment_from(target, given)
    watch.begin("imports")

    from armillary.server.serve import serve

    serve(deployment, watch=watch)
