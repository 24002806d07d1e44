"""Simulations side by side, in processes of their own, with the same results as one after the other.

A task is a function of this package that is handed the trials of a question and one item, and depends on nothing else.
So it does not matter which process works on it, or what else that process did before.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import zip_longest
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from threading import current_thread, main_thread
from types import TracebackType
from typing import Any, TypeVar

from armillary.plan.question import Question
from armillary.plan.steady_load import Pace
from armillary.plan.trials import Trials

T = TypeVar("T")
R = TypeVar("R")

_own: list[Trials] = []
"""Of a process that works for others: the trials of the question, kept from task to task."""


def processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Crew:
    """Works on tasks.

    Args:
        trials: of this process; counts what the others simulate, too.
        processes: that work side by side; 1: this one alone.
    """

    def __init__(self, trials: Trials, processes: int) -> None:
        self._trials = trials
        self._processes = processes
        self._begun: dict[object, Future[tuple[Any, int, float]]] = {}
        """Tasks that were begun because they may be asked for, by task and item."""
        self._pool: ProcessPoolExecutor | None = None
        self._others: set[BaseProcess] = set()
        if processes > 1:
            # Neither threads nor locks of this process are copied into one that begins anew.
            self._pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin, (trials.question,))
            before = set(active_children())
            # Those that begin then are not interrupted, either: this process ends them. They begin beside its own work.
            with _uninterrupted():
                self._ready = [self._pool.submit(_nothing) for _ in range(processes)]
            self._others = set(active_children()) - before

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        if error is None:
            self._pool.shutdown(cancel_futures=True)
            return
        # Nobody waits for what the others are at. A second interruption in the midst of this would have them wait for
        # ever for work, and this process for them.
        with _uninterrupted():
            for process in self._others:
                process.terminate()
            self._pool.shutdown(cancel_futures=True)

    def each(
        self,
        task: Callable[[Trials, T], R],
        items: Sequence[T],
        ahead: Callable[[int], Sequence[T]] = lambda count: (),
    ) -> Iterator[R]:
        """The results of a task for some items, in their order, each as soon as it and those before it are there.

        Other processes begin at once and go on while the caller does something else.

        Args:
            ahead: tells so many items that may be asked for next, the likeliest first. Processes that would have
                nothing to do begin with them, at most half of all. They count once they are asked for, so that
                nothing depends on them.
        """
        futures: list[Future[tuple[R, int, float]] | None] = []
        if (pool := self._pool) is not None:
            try:
                futures = [self._begun.pop((task, item), None) for item in items]
                for key in [key for key, begun in self._begun.items() if begun.cancel()]:
                    del self._begun[key]  # else it has begun, and may still be asked for
                if len(items) > 1:  # a single one is done by this process
                    futures = [
                        begun or self._submit(pool, task, item) for begun, item in zip(futures, items, strict=True)
                    ]
                room = self._processes // 2 - sum(not begun.done() for begun in self._begun.values())
                for item in ahead(room) if room > 0 else ():
                    if (task, item) not in self._begun:
                        self._begun[task, item] = self._submit(pool, task, item)
            except BrokenExecutor:
                self._pool = None
        return self._results(task, items, futures)

    def _submit(
        self, pool: ProcessPoolExecutor, task: Callable[[Trials, T], R], item: T
    ) -> Future[tuple[R, int, float]]:
        return pool.submit(_work, task, item, self._trials.pace)

    def _results(
        self,
        task: Callable[[Trials, T], R],
        items: Sequence[T],
        futures: Sequence[Future[tuple[R, int, float]] | None],
    ) -> Iterator[R]:
        for item, future in zip_longest(items, futures[: len(items)]):
            if self._pool is not None and future is not None:
                try:
                    result, simulated, seconds = future.result()
                    self._trials.simulated += simulated
                    self._trials.seconds += seconds
                    yield result
                    continue
                except BrokenExecutor:  # one was killed; this process can do it all
                    self._pool = None
            yield task(self._trials, item)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C is for the main thread, which alone may put it off."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _begin(question: Question) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that was asked ends the others
    _own.append(Trials(question))


def _nothing() -> None:
    return None


def _work(task: Callable[[Trials, T], R], item: T, pace: Pace) -> tuple[R, int, float]:
    """A task's result, how many requests it simulated, and for how many seconds of theirs."""
    trials = _own[0]
    trials.pace = pace  # which takes as long as a simulation to find out
    trials.simulated, trials.seconds = 0, 0.0
    result = task(trials, item)
    return result, trials.simulated, trials.seconds
