"""Armillary runs generative models, and knows beforehand how they will run.

`from armillary import LLM, SamplingParams` is the whole public surface of the package; both are loaded on
first use, so that importing the package costs milliseconds and the command line stays quick.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from armillary.version import __version__

if TYPE_CHECKING:
    from armillary.runtime.llm import LLM as LLM
    from armillary.runtime.sampling import SamplingParams as SamplingParams

__all__ = ["LLM", "SamplingParams", "__version__"]

IMPORTED_AT = time.monotonic()
"""When this process first imported the package: `serve` tells its own start from the interpreter's."""

_HOMES = {"LLM": "armillary.runtime.llm", "SamplingParams": "armillary.runtime.sampling"}


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'armillary' has no attribute {name!r}; it offers {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
