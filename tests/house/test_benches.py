"""The scripts of bench/ start as their own documentation says, and `make bench` names scripts that are there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "bench").glob("*.py") if "def main(" in path.read_text(encoding="utf-8"))


def test_make_bench_runs_scripts_that_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.search(r"^BENCHES \?= (.+)$", makefile, re.MULTILINE)
    assert found is not None
    names = found[1].split()
    assert len(names) >= 8 and set(names) <= set(SCRIPTS)
    assert "-m bench.$$name" in makefile


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_script_says_of_how_to_run_it(script: str) -> None:
    text = (ROOT / "bench" / f"{script}.py").read_text(encoding="utf-8")
    assert f"python -m bench.{script} " in text, f"bench/{script}.py must say that it is run as a module"


def test_every_script_starts_from_the_root_of_the_repository() -> None:
    """As a user starts it: from the root, and with no path but that of the package."""
    pytest.importorskip("transformers")
    names = ", ".join(f"bench.{name}" for name in SCRIPTS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", f"import {names}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
