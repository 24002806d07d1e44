"""What the system says about memory: reserved is not taken, taken is, and freed comes back."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

from armillary.runtime.memory import taken


def reserved(size: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)


def test_reserved_memory_is_taken_as_it_is_written() -> None:
    size = 8 << 20
    array = reserved(size)
    assert taken([array]) == 0
    array[: size // 4] = 1
    part = taken([array])
    assert size // 4 <= part < size
    array.fill(1)
    assert taken([array, array[: size // 2]]) == size + size // 2


def test_parts_of_pages_count_no_more_than_they_are() -> None:
    array = reserved(4 * mmap.PAGESIZE)
    array.fill(1)
    assert taken([array[7:1000]]) == 993
    assert taken([array[mmap.PAGESIZE - 3 : mmap.PAGESIZE + 3]]) == 6
    assert taken([]) == 0


FREED = """
import sys

import numpy as np

from armillary.runtime import memory

size = 96 << 20
many = [np.ones(65536, dtype=np.uint8) for _ in range(size // 65536)]  # below what the allocator maps by itself
last = np.ones(65536, dtype=np.uint8)  # what is free lies below what is not, so that freeing alone returns nothing
full = memory.resident()
many.clear()
kept = memory.resident()
getattr(memory, sys.argv[1])()
print(full - kept, full - memory.resident(), size)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the allocator is not glibc's")
@pytest.mark.parametrize("let_go", ["give_back", "trim"])
def test_what_is_freed_comes_back(let_go: str) -> None:
    """In a process of its own: other threads of this one take memory and leave it while the test looks."""
    ran = subprocess.run([sys.executable, "-c", FREED, let_go], capture_output=True, text=True, timeout=60, check=True)
    at_once, in_all, size = map(int, ran.stdout.split())
    assert at_once < 0.1 * size
    assert in_all > 0.9 * size
