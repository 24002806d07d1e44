"""The flags with which chat, generate and eval choose whom they talk to and how."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from armillary.cli.flags import Given
from armillary.cli.output import console
from armillary.errors import ArmillaryError, Code

if TYPE_CHECKING:
    from armillary.runtime.partner import Partner

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A folder, a hub id, or `isles`; with --url, the name that the server knows. Unset: isles, or the "
        "server's first model.",
    ),
]
Url = Annotated[
    str | None, typer.Option(metavar="URL", help="Ask this OpenAI-compatible server instead of loading a model.")
]
ApiKey = Annotated[
    str | None, typer.Option(metavar="KEY", envvar="ARMILLARY_API_KEY", help="Key for the server at --url.")
]
Temperature = Annotated[
    float | None, typer.Option(min=0, max=2, metavar="NUMBER", help="0 always takes the likeliest token.")
]
TopP = Annotated[
    float | None, typer.Option(max=1, metavar="NUMBER", help="Draw from the likeliest tokens with this share in all.")
]
MaxTokens = Annotated[int | None, typer.Option(min=1, metavar="INT", help="Most tokens in an answer.")]
Seed = Annotated[int | None, typer.Option(min=0, metavar="INT", help="Draw the same answer again.")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End an answer before this text; repeatable.")]


def partner(model: str | None, url: str | None, api_key: str | None, given: Given) -> Partner:
    """The partner that a command line names."""
    if url is not None:
        if given["engine"]:
            from armillary.deployment.explain import flag_name

            flags = ", ".join(flag_name(name) for name in given["engine"])
            raise ArmillaryError(
                Code.INVALID_DEPLOYMENT,
                f"{flags} must be given where a model is loaded, given --url as well; set it on that server instead",
            )
        from armillary.runtime.partner import RemotePartner

        return RemotePartner(url, model, api_key)

    from armillary.deployment import EngineSettings, checked

    engine = checked(EngineSettings, given["engine"])
    with console(stderr=True).status("Loading the model"):
        from armillary.runtime.partner import LocalPartner

        return LocalPartner(model or "isles", engine)
