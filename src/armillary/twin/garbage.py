"""Work without a search for circles of objects that nobody holds."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected(wanted: bool = True) -> Iterator[None]:
    """Do not search meanwhile: simulations make hundreds of thousands of objects, none of them in a circle, and looking
    for circles took a tenth of their time."""
    collecting = gc.isenabled()
    if wanted:
        gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
