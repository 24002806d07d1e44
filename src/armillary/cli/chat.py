"""armillary chat"""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from armillary.cli import partners
from armillary.cli.flags import Given, with_flags
from armillary.cli.output import console
from armillary.deployment import EngineSettings
from armillary.errors import ArmillaryError

if TYPE_CHECKING:
    from armillary.runtime.partner import Partner, Wishes

HELP = "/new begins again, /undo takes the last exchange back, /quit leaves. Ctrl-C ends an answer."


@with_flags(omit=("seed",), engine=EngineSettings)
def command(
    model: partners.Model = None,
    url: partners.Url = None,
    api_key: partners.ApiKey = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message to begin with.")] = None,
    temperature: partners.Temperature = None,
    top_p: partners.TopP = None,
    max_tokens: partners.MaxTokens = None,
    seed: partners.Seed = None,
    *,
    given: Given,
) -> None:
    """Talk to a model in the terminal.

    Lines from a pipe are answered one by one, as one conversation.
    """
    partner = partners.partner(model, url, api_key, given)

    from armillary.runtime.partner import Wishes

    wishes = Wishes(temperature, top_p, max_tokens, seed)
    beginning: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    remarks = console(stderr=True)
    if sys.stdin.isatty():
        import readline  # noqa: F401 (line editing and history for input())

        remarks.print(f"[dim]{partner.name}. {HELP}[/dim]")
    try:
        with asyncio.Runner() as runner:
            _converse(partner, wishes, beginning, runner)
    finally:
        partner.close()


def _converse(partner: Partner, wishes: Wishes, beginning: list[dict[str, Any]], runner: asyncio.Runner) -> None:
    """Read lines and answer them until there are no more."""
    messages = list(beginning)
    while (line := _line()) is not None:
        match line:
            case "":
                continue
            case "/quit" | "/exit":
                return
            case "/help":
                print(HELP)
                continue
            case "/new":
                messages = list(beginning)
                continue
            case "/undo":
                messages = messages[: max(len(beginning), len(messages) - 2)]
                continue
        messages.append({"role": "user", "content": line})
        said: list[str] = []
        try:
            runner.run(_print_reply(partner, messages, wishes, said))
        except KeyboardInterrupt:
            print(" …")
        except ArmillaryError as error:
            print(f"armillary: {error.message}", file=sys.stderr)
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": "".join(said)})


def _line() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


async def _print_reply(partner: Partner, messages: list[dict[str, Any]], wishes: Wishes, said: list[str]) -> None:
    async with aclosing(partner.reply(messages, wishes)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            said.append(piece)
            print(piece, end="", flush=True)
    print(flush=True)
