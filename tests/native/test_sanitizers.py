"""The native kernels under the sanitisers of the compiler: no access out of bounds, nothing undefined, no race.

Builds take minutes of processor time, so there is one for all tests here: of the fastest path that this processor runs,
of `portable`, which processors without a path of their own run, and of those that stand in for others. They run on
demand, with `ARMILLARY_SANITIZERS=required` in the environment, as `make sanitize` and continuous integration set it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from armillary.kernels import native

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "armillary"
# What is left out repeats on large inputs what other tests do on small ones.
LEFT_OUT = "not large_vocabulary and not what_may_be_drawn and not have_the_odds"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def missing() -> str | None:
    """What is not there of what a sanitised build needs."""
    for tool in ("g++", "cmake"):
        if shutil.which(tool) is None:
            return f"{tool} is not there"
    if importlib.util.find_spec("nanobind") is None:
        return "nanobind is not installed"
    if not Path(library("libasan.so")).is_absolute():
        return "the compiler has no address sanitiser"
    if not native.paths():
        return native.why()
    return None


def library(name: str) -> str:
    """Where the compiler keeps a library; only its name if it has none."""
    return subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


def chosen_paths() -> list[str]:
    """The paths of this processor that are sanitised: its fastest, and the one that every processor has."""
    return sorted({native.paths()[-1], "portable"})


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    if os.environ.get("ARMILLARY_SANITIZERS") != "required":
        pytest.skip("ARMILLARY_SANITIZERS=required is not in the environment")
    reason = missing()
    if reason is not None:
        pytest.fail(f"ARMILLARY_SANITIZERS=required, but {reason}")


@pytest.fixture(scope="module")
def packages(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import armillary from, all links but for a sanitised extension."""
    folder = tmp_path_factory.mktemp("sanitised")
    kernels = folder / "armillary" / "kernels"
    kernels.mkdir(parents=True)
    for source in PACKAGE.iterdir():
        if source.name != "kernels":
            (folder / "armillary" / source.name).symlink_to(source)
    for source in (PACKAGE / "kernels").glob("*.py*"):
        (kernels / source.name).symlink_to(source)
    build = folder / "build"
    sanitised = ";".join([*chosen_paths(), *native.extension().emulated_paths()])
    configure = [
        "cmake", "-S", str(ROOT / "src" / "native"), "-B", str(build), f"-DARMILLARY_SANITIZE={sanitised}",
        "-DCMAKE_CXX_COMPILER=g++", f"-DPython_EXECUTABLE={sys.executable}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={kernels}",
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", str(build), "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert list(kernels.glob("_native*.so"))
    # An editable installation puts a finder of its own before every path.
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "sys.meta_path[:] = [one for one in sys.meta_path if not type(one).__module__.startswith('_editable')]\n"
    )
    found = python(folder, "-c", "from armillary.kernels import _native; print(_native.__file__)")
    assert Path(found.stdout.strip()).parent == kernels, found.stdout + found.stderr
    return folder


def python(packages: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the sanitised extension."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(packages),
        # The interpreter was linked without either, and the first must find the second's functions when it starts.
        "LD_PRELOAD": f"{library('libasan.so')}:{library('libstdc++.so.6')}",
        # Python and torch keep what they allocate to the end.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def test_kernels_stay_within_bounds(packages: Path) -> None:
    files = sorted(str(path) for path in (ROOT / "tests" / "kernels").glob("test_native_*.py"))
    others, fastest = set(native.paths()) - set(chosen_paths()), native.paths()[-1]
    # The name of one path may be a part of another's.
    left_out = " and ".join([LEFT_OUT, *(f"(not {path} or {fastest} or emulated)" for path in sorted(others))])
    # However slow the machine is: nothing is measured here.
    chosen = ["-q", "-x", "-p", "no:cacheprovider", "--timeout", "1800", "-m", "not slow", "-k", left_out]
    done = python(packages, "-m", "pytest", *chosen, *files)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert " passed" in done.stdout and " error" not in done.stdout


def test_a_read_out_of_bounds_is_seen(packages: Path) -> None:
    """The broken variant: rows said to be longer than their memory."""
    code = (
        "import numpy as np; from armillary.kernels import _native as n;"
        "x = np.lib.stride_tricks.as_strided(np.zeros(4096, np.float32), (1, {width}), (16384, 4));"
        "n.argmax(n.paths()[-1], x, np.zeros(1, np.float32), np.zeros(1, np.int64))"
    )
    assert python(packages, "-c", code.format(width=4096)).returncode == 0
    done = python(packages, "-c", code.format(width=4097))
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_a_team_of_threads(sanitizers: str, tmp_path: Path) -> None:
    program = tmp_path / "team_check"
    native = ROOT / "src" / "native"
    sources = [str(native / "team.cpp"), str(native / "team_size.cpp"), str(Path(__file__).with_name("team_check.cpp"))]
    flags = ["-std=c++17", "-O1", "-g", "-pthread", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=undefined"]
    command = ["g++", *flags, f"-I{native}", *sources, "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "well\n", done.stdout[-2000:] + done.stderr[-6000:]
