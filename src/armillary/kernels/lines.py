"""Memory for the native kernels, aligned to cache lines."""

from __future__ import annotations

import contextlib
import errno
import mmap

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64
Bytes = npt.NDArray[np.uint8]
HUGE_BYTES = 32 << 20
"""Memory from which on huge pages are asked for."""


def aligned(size: int) -> Bytes:
    """Zeros uint8 [size], beginning at a multiple of `ALIGNMENT`.

    Much memory is taken in huge pages where the system has them: kernels stream through all of it at every step, and
    with pages of 4 KiB they would wait for addresses to be translated.
    """
    if size >= HUGE_BYTES:
        return np.frombuffer(_huge(size), dtype=np.uint8, count=size)
    whole = np.zeros(size + ALIGNMENT, dtype=np.uint8)
    skip = -whole.ctypes.data % ALIGNMENT
    return whole[skip : skip + size]


def pages(size: int, flags: int = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) -> mmap.mmap:
    """Zeros that cost nothing until they are written. Raises MemoryError where the system promises no more memory."""
    try:
        return mmap.mmap(-1, size, flags=flags)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise MemoryError(f"the system refuses to promise {size} bytes more") from error


def _huge(size: int) -> mmap.mmap:
    # Private: memory that could be shared gets huge pages by another switch, which systems leave off.
    memory = pages(size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A system without huge pages says so, and gives plain ones.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
