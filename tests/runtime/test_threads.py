"""Every engine computes with its own number of threads, whatever other engines of the process were built with."""

from __future__ import annotations

import threading

import torch

from armillary.runtime.threads import use_threads


def test_each_thread_keeps_its_own_number() -> None:
    seen: dict[int, list[int]] = {}
    barrier = threading.Barrier(2)

    def engine(threads: int) -> None:
        for _ in range(20):
            barrier.wait(30)
            use_threads(threads)
            use_threads(None)
            torch.ones(256, 256) @ torch.ones(256, 256)
            seen.setdefault(threads, []).append(torch.get_num_threads())

    both = [threading.Thread(target=engine, args=(threads,)) for threads in (1, 2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(60)
    assert seen == {1: [1] * 20, 2: [2] * 20}
