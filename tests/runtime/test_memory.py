"""What the system says about memory: reserved is not taken, taken is, and freed comes back."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable

import pytest
import torch

from armillary.runtime.memory import give_back, resident, taken, trim


def reserved(size: int) -> torch.Tensor:
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)


def test_reserved_memory_is_taken_as_it_is_written() -> None:
    size = 8 << 20
    tensor = reserved(size)
    assert taken([tensor]) == 0
    tensor[: size // 4] = 1
    part = taken([tensor])
    assert size // 4 <= part < size
    tensor.fill_(1)
    assert taken([tensor, tensor[: size // 2]]) == size + size // 2


def test_parts_of_pages_count_no_more_than_they_are() -> None:
    tensor = reserved(4 * mmap.PAGESIZE)
    tensor.fill_(1)
    assert taken([tensor[7:1000]]) == 993
    assert taken([tensor[mmap.PAGESIZE - 3 : mmap.PAGESIZE + 3]]) == 6
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
