"""Main memory as the operating system counts it: what this process has, what of a reservation is in use, and how
to give back what was freed."""

from __future__ import annotations

import ctypes
import gc
import mmap
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import psutil


def resident() -> int:
    """Bytes of main memory that this process occupies."""
    return int(psutil.Process().memory_info().rss)


def taken(arrays: Iterable[npt.NDArray[np.uint8]]) -> int:
    """Bytes of these arrays for which the system has given pages; 0 where it does not say.

    An array whose memory was only reserved takes none until it is written.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mincore"):
        return 0
    total = 0
    for array in arrays:
        size, begin = array.nbytes, array.ctypes.data
        first = begin // mmap.PAGESIZE * mmap.PAGESIZE
        span = begin + size - first
        pages = (ctypes.c_ubyte * -(-span // mmap.PAGESIZE))()
        if libc.mincore(ctypes.c_void_p(first), ctypes.c_size_t(span), pages) == 0:
            # The lowest bit says whether the page is there; nothing else is ever set for memory of our own.
            total += min(size, (len(pages) - bytes(pages).count(0)) * mmap.PAGESIZE)
    return total


def give_back() -> None:
    """Let go of garbage, and of what is free."""
    gc.collect()
    trim()


def trim() -> None:
    """Let the allocator return what is free to the system, so that other programs can have it. Takes milliseconds."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc; others return large blocks as they are freed
        libc.malloc_trim(0)
