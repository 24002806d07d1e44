"""How many threads torch computes with for one engine. OpenMP keeps the number for each calling thread, so that every
engine of a process can have its own; what a thread has not set, it takes from whichever other thread set it last.

torch is loaded by the first who asks: where the native kernels compute, nobody may."""

from __future__ import annotations


def use_threads(count: int | None) -> None:
    """Let the calling thread compute with so many threads; None leaves them as they are. Costs next to nothing where
    nothing changes, so it can stand before every step."""
    import torch

    if count is not None and torch.get_num_threads() != count:
        torch.set_num_threads(count)


def current_threads() -> int:
    """How many threads the calling thread computes with."""
    import torch

    return torch.get_num_threads()
