"""What the system says about memory: reserved is not taken, taken is, and freed comes back."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from armillary.runtime.memory import give_back, resident, taken, trim


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


@pytest.mark.parametrize("let_go", [give_back, trim])
def test_what_is_freed_comes_back(let_go: Callable[[], None]) -> None:
    size = 96 << 20
    many = [torch.ones(size // 4 // 64) for _ in range(64)]  # small enough for the allocator to keep
    full = resident()
    assert math.isclose(sum(tensor.nbytes for tensor in many), size)
    many.clear()
    let_go()
    assert full - resident() > 0.9 * size
