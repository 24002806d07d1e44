"""What the scripts beside this one share: a file of results that says what was found and where."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from armillary.measure.report import write_text


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option that says where results go; without it they are printed only."""
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results here")


def save(path: Path | None, path_of_kernels: str, threads: int, found: dict[str, Any]) -> None:
    """Write what was found, after the machine and the versions that it was found with, if a path was given."""
    if path is None:
        return
    machine = {
        "processor": platform.processor() or platform.machine(),
        "processors": os.cpu_count(),
        "load_of_a_minute": round(os.getloadavg()[0], 2),
        "path": path_of_kernels,
        "threads": threads,
        "torch": torch.__version__,
    }
    write_text(path, json.dumps({"machine": machine, **found}, indent=2) + "\n")
    print(f"written to {path}")
