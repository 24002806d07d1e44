"""The `armillary` command: finds the verb, loads only that verb's file, and turns errors into exit codes."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import typer

from armillary.errors import ArmillaryError, Code

VERBS = {
    "serve": "Serve a model behind an OpenAI-compatible API.",
    "chat": "Talk to a model in the terminal.",
    "generate": "Complete one prompt.",
    "train": "Train a model.",
    "eval": "Measure what a model knows.",
    "bench": "Measure a server under load.",
    "experiment": "Find out which settings matter, and which do not.",
    "compare": "Compare a prediction with an observation, or the decisions of journals.",
    "workload": "Draw, convert and describe workloads.",
    "models": "List the models at hand and the families supported.",
    "plan": "Choose a deployment, and say what it will do before it runs.",
    "observe": "Make a workload of what a server was asked, while it runs or afterwards.",
    "replay": "Send recorded requests again, to a server or to the twin of another.",
    "simulate": "Say what a deployment will do under a workload, without running it.",
    "profile": "Measure what a model costs on this machine, so that the twin can predict it.",
    "doctor": "Measure this machine and say what a model will do on it.",
    "claims": "Measure published results again.",
}
"""Verb -> its help in the overview. `armillary.cli.<verb>` holds a `command`, or an `app` with verbs of its own."""

USAGE, MODEL, ROOM, SERVER, ENGINE, INTERRUPTED = 2, 3, 4, 5, 6, 130
EXIT_CODES = {
    Code.INVALID_REQUEST: USAGE,
    Code.INVALID_DEPLOYMENT: USAGE,
    Code.NOT_FOUND: USAGE,
    Code.MODEL_NOT_FOUND: MODEL,
    Code.INVALID_CHECKPOINT: MODEL,
    Code.UNSUPPORTED_MODEL: MODEL,
    Code.MEMORY: ROOM,
    Code.CANNOT_FIT: ROOM,
    Code.CONTEXT_LENGTH: ROOM,
    Code.TOO_LARGE: ROOM,
    Code.UNREACHABLE: SERVER,
    Code.UNAVAILABLE: SERVER,
    Code.QUEUE_FULL: SERVER,
    Code.RATE_LIMIT: SERVER,
    Code.DEADLINE: SERVER,
    Code.TOO_SLOW: SERVER,
    Code.UNAUTHORIZED: SERVER,
    Code.FORBIDDEN: SERVER,
    Code.METHOD_NOT_ALLOWED: SERVER,
    Code.ENGINE_FAILED: ENGINE,
}
"""Exit status of a command that ended with an error. 1 is left to defects."""


def build_app(arguments: list[str]) -> typer.Typer:
    """The command tree for one invocation: verbs that are not among the arguments stay unloaded."""
    app = typer.Typer(
        name="armillary",
        help="Runs generative models, and knows beforehand how they will run.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for verb, summary in VERBS.items():
        if verb not in arguments:
            app.command(verb, help=summary)(_unloaded)
            continue
        module = import_module(f"armillary.cli.{verb}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=verb, help=summary)
        else:
            app.command(verb)(module.command)
    return app


def run(arguments: list[str] | None = None) -> None:
    """Entry point. Leaves through `SystemExit` with 0, or with the code of `EXIT_CODES`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        from armillary.version import __version__

        print(f"armillary {__version__}")
        return
    try:
        build_app(arguments)(arguments, prog_name="armillary")
    except ArmillaryError as error:
        print(f"armillary: {error.message}", file=sys.stderr)
        raise SystemExit(EXIT_CODES[error.code]) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except MemoryError:
        print("armillary: what was asked for must fit in memory, so ask for less of it", file=sys.stderr)
        raise SystemExit(ROOM) from None
    except RecursionError:
        print("armillary: a file must not hold values within values deeper than can be followed", file=sys.stderr)
        raise SystemExit(USAGE) from None
    except BrokenPipeError:
        # Whoever read our output has seen enough (`armillary models | head`); nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:
        # Each verb says what is wrong with the files that it reads; here are those that nobody could write.
        print(f"armillary: what is named must be a place that can be read or written, so: {error}", file=sys.stderr)
        raise SystemExit(USAGE) from None


def _root(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    """Only declares --version; `run` answers it before anything is loaded."""


def _unloaded() -> None:
    raise AssertionError("a verb that was not loaded cannot be called")
