"""The kernels in C++ (`src/native`), where they were built and this processor runs them.

`ARMILLARY_KERNELS` in the environment chooses: the name of a path (`portable`, `avx2`, `avx512_plain`, `avx512`,
`avx512_bf16`, `amx`) or `native` for the fastest of them; `torch` or `reference` for none. By default the fastest where
there is any, else torch.
"""

from __future__ import annotations

import logging
import os
import shutil
from functools import cache
from importlib import import_module
from types import ModuleType

from armillary.errors import ArmillaryError, Code
from armillary.kernels.lines import ALIGNMENT as ALIGNMENT
from armillary.kernels.lines import Bytes as Bytes
from armillary.kernels.lines import aligned as aligned
from armillary.kernels.lines import pages as pages
from armillary.kernels.proof import agrees

VARIABLE = "ARMILLARY_KERNELS"
WITHOUT = ("torch", "reference")
"""Values of the variable that leave everything to torch."""
RARE = ("avx512_plain", "avx512", "avx512_bf16", "amx")
INTERFACE = 8
"""What the extension calls `interface`, raised there and here with every change of what may be called and how: an
extension that was built before such a change is not used."""
COMPILERS = ("c++", "g++", "clang++")

logger = logging.getLogger(__name__)


@cache
def find() -> tuple[ModuleType | None, str]:
    """The extension; or None, and what is the matter, as a clause. A warning says once what is lost."""
    try:
        found = import_module("armillary.kernels._native")
    except ModuleNotFoundError:
        compiler = next((name for name in COMPILERS if shutil.which(name)), None)
        hint = f"though {compiler} is here: `make native` builds them or says why"
        problem = "were not built: no C++ compiler at install" if compiler is None else f"were not built, {hint}"
    except ImportError as error:
        problem = f"cannot be loaded ({error}): run `make native`"
    else:
        given = getattr(found, "interface", 1)
        if given == INTERFACE:
            return found, ""
        problem = f"are of interface {given} where this version calls {INTERFACE}: run `make native`"
    problem = f"the native kernels {problem}"
    logger.warning("computing with torch alone, several times slower: %s", problem)
    return None, problem


def module() -> ModuleType | None:
    """The extension; None where there is none to be used."""
    return find()[0]


def extension() -> ModuleType:
    """The extension, for what is built on a path of it: whoever has a path has this."""
    found, problem = find()
    if found is None:
        raise RuntimeError(problem)
    return found


@cache
def paths() -> list[str]:
    """Sets of native kernels that run here, slowest first.

    Those for instruction sets that few processors have must first multiply right (`armillary.kernels.proof`).
    """
    found = module()
    if found is None:
        return []
    names: list[str] = list(found.paths())
    wrong = [name for name in names if name in RARE and not agrees(found, name)]
    if wrong:
        logger.warning("left out native kernels that compute wrongly on this processor: %s", ", ".join(wrong))
    return [name for name in names if name not in wrong]


def choose(name: str | None = None) -> str | None:
    """The path to compute with, or None for torch.

    Args:
        name: as the environment variable has it; None or empty for the default.

    Raises ArmillaryError: INVALID_DEPLOYMENT for a path that is unknown, was not built or does not run here.
    """
    if name in WITHOUT:
        return None
    found = paths()
    if not name:
        return found[-1] if found else None
    if name == "native" and found:
        return found[-1]
    if name not in found:
        known = ", ".join((*WITHOUT, "native", *found)) if found else ", ".join(WITHOUT)
        raise ArmillaryError(
            Code.INVALID_DEPLOYMENT,
            f"{VARIABLE} must be one of {known} on this machine, given {name!r}" + ("" if found else f"; {find()[1]}"),
            VARIABLE,
        )
    return name


def chosen() -> str | None:
    """The path that the environment asks for, or None for torch."""
    return choose(os.environ.get(VARIABLE))


def why() -> str:
    """The reason for what `chosen` gives, for people."""
    if os.environ.get(VARIABLE):
        return f"{VARIABLE} asks for it"
    return "fastest that this processor runs" if paths() else find()[1]
