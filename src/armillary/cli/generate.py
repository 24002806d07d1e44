"""armillary generate"""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from armillary.cli import partners
from armillary.cli.flags import Given, with_flags
from armillary.cli.output import print_json
from armillary.deployment import EngineSettings

if TYPE_CHECKING:
    from armillary.runtime.partner import Partner, Wishes


@with_flags(omit=("seed",), engine=EngineSettings)
def command(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text, or - to read it from standard input.")],
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A folder, a hub id, or `isles`; with --url, its name there.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask it as a message instead of continuing it.")] = False,
    url: partners.Url = None,
    api_key: partners.ApiKey = None,
    temperature: partners.Temperature = None,
    top_p: partners.TopP = None,
    max_tokens: partners.MaxTokens = None,
    seed: partners.Seed = None,
    stop: partners.Stop = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    *,
    given: Given,
) -> None:
    """Complete one prompt."""
    text = sys.stdin.read() if prompt == "-" else prompt
    partner = partners.partner(model, url, api_key, given)

    from armillary.runtime.partner import Wishes

    wishes = Wishes(temperature, top_p, max_tokens, seed, tuple(stop or ()))
    try:
        answer = asyncio.run(_generate(partner, text, wishes, chat, quiet=json))
    finally:
        partner.close()
    if json:
        print_json({"model": partner.name, "prompt": text, "text": answer})


async def _generate(partner: Partner, text: str, wishes: Wishes, chat: bool, quiet: bool) -> str:
    said: list[str] = []
    pieces = partner.reply([{"role": "user", "content": text}], wishes) if chat else partner.complete(text, wishes)
    async with aclosing(pieces) as stream:  # type: ignore[type-var]
        async for piece in stream:
            said.append(piece)
            if not quiet:
                print(piece, end="", flush=True)
    if not quiet:
        print()
    return "".join(said)
