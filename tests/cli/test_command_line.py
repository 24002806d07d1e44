"""The command: quick to start, one file a verb, errors without tracebacks."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from armillary.cli.main import EXIT_CODES, VERBS, run
from armillary.errors import Code
from armillary.version import __version__

HEAVY = {"torch", "fastapi", "transformers", "pydantic", "numpy", "huggingface_hub", "tokenizers", "httpx", "uvicorn"}


def armillary(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from armillary.cli.main import run; run(sys.argv[1:])"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)


def loaded_by(arguments: list[str]) -> set[str]:
    """Top-level packages that a command line loads."""
    code = (
        "import sys\n"
        "from armillary.cli.main import run\n"
        "try: run(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('|', *{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    return set(done.stderr.rpartition("|")[2].split())


def test_help_and_version_load_nothing_heavy() -> None:
    assert not loaded_by(["--help"]) & HEAVY
    assert not loaded_by(["--version"]) & (HEAVY | {"rich"})


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_loads_no_tensor_and_no_server(verb: str) -> None:
    assert not loaded_by([verb, "--help"]) & {"torch", "fastapi", "transformers", "huggingface_hub", "tokenizers"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_begins_as_the_overview_says(verb: str) -> None:
    done = armillary(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert VERBS[verb] in done.stdout
    module = import_module(f"armillary.cli.{verb}")
    if hasattr(module, "command"):
        assert module.command.__doc__.splitlines()[0] == VERBS[verb]


def test_the_overview_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(["--help"])
    assert left.value.code == 0
    output = capsys.readouterr().out
    assert all(verb in output for verb in VERBS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    run(["--version"])
    assert capsys.readouterr().out == f"armillary {__version__}\n"


def test_every_error_has_an_exit_code() -> None:
    assert set(EXIT_CODES) == set(Code)
    assert not set(EXIT_CODES.values()) & {0, 1}


def test_an_error_is_one_line_and_a_code_without_traceback() -> None:
    done = armillary("serve", "nowhere.yaml")
    assert done.returncode == EXIT_CODES[Code.INVALID_DEPLOYMENT]
    assert done.stderr.startswith("armillary: nowhere.yaml: must be an existing file")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_unknown_verb_is_a_usage_error() -> None:
    done = armillary("serv")
    assert done.returncode == 2
    assert "serve" in done.stderr
