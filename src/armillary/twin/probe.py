"""Measures the real engine, as it serves: designed steps, steps as they come under load, and what lies between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from armillary.core.request import Request, Sequence
from armillary.core.step import Entry, Event, Executor, Step, StepResult
from armillary.deployment.engine import EngineSettings
from armillary.errors import ArmillaryError, Code
from armillary.runtime.executor import TorchExecutor
from armillary.runtime.load import LoadedEngine, build_engine
from armillary.runtime.sampling import SamplingParams
from armillary.runtime.worker import EngineWorker
from armillary.twin.cost import CostModel
from armillary.twin.crowd import Crowd
from armillary.twin.points import Limits, Point, Share
from armillary.twin.profile import Lived, Timed
from armillary.twin.work import StepWork, work_of

MOST_POSITIONS = 2**17
"""Most KV positions that designed steps use together."""
MOST_KV_BYTES = 2**30
KEPT_STEPS = 1_000_000
"""Steps under load that are remembered while they are measured."""
_SEEDED = 256
"""Positions that are computed for real; all other blocks are filled with copies of theirs."""


class EngineProbe:
    """The engine of a model, built as `serve` builds it, and taken apart for measuring.

    Raises: as `build_engine`; ArmillaryError INVALID_REQUEST for a model that generates nothing.
    """

    def __init__(self, folder: Path, settings: EngineSettings) -> None:
        self._events: list[Event] = []
        settings = settings.model_copy(update={"timeline_steps": KEPT_STEPS, "journal": None})
        self.loaded: LoadedEngine = build_engine(folder, settings, self._events.extend)
        executor = self.loaded.engine.executor
        if not isinstance(executor, TorchExecutor):
            raise ArmillaryError(
                Code.INVALID_REQUEST, "model must be one that generates text, given an encoder", "model"
            )
        self._executor, self.spec = executor, executor.spec
        plan, self._settings = self.loaded.plan, settings
        kv_bytes = max(1, plan.kv // plan.num_blocks)
        blocks = min(plan.num_blocks, MOST_POSITIONS // plan.block_size, MOST_KV_BYTES // kv_bytes)
        self.block_bytes = kv_bytes
        self.limits = Limits(plan.max_running, plan.max_step_tokens, plan.max_context, blocks, plan.block_size)
        self._rng = np.random.default_rng(0)
        self._uid = 0

    def fill(self) -> None:
        """Write keys and values of real tokens into all blocks: memory never written would be read from nowhere."""
        limits = self.limits
        count = min(_SEEDED, limits.context, limits.step_tokens, limits.blocks * limits.block_size)
        full = count // limits.block_size
        if full == 0:
            return
        real = Point((Share(0, full * limits.block_size, 0),))
        self._executor.run(self._step(real, list(range(full))))
        for begin in range(full, limits.blocks, full):
            self._executor.cache.copy([(i, begin + i) for i in range(min(full, limits.blocks - begin))])

    def measure(self, point: Point, seconds: float = 0.04, most: int = 15) -> Timed:
        """Time a step: computed once to warm up, then until `seconds` are over, twice at least.

        A step that takes seconds is computed once more only.
        """
        step = self._step(point, self._scattered(point))
        run, now = self._executor.run, time.perf_counter
        began = now()
        run(step)
        least = 1 if now() - began > 1.0 else 2
        times: list[float] = []
        end = now() + seconds
        while len(times) < least or (now() < end and len(times) < most):
            began = now()
            run(step)
            times.append(round(now() - began, 8))
        return Timed(work=point.work[:5], seconds=times)

    def live(self, cost: CostModel, seconds: float, progress: Callable[[float], None]) -> Lived:
        """Load the engine in its own thread, with ever more requests at once, and note every step.

        Args:
            cost: of designed steps; says how long requests may be.
        """
        engine = self.loaded.engine
        stamped = Stamped(engine.executor)
        engine.executor = stamped
        found = Lived()
        worker = EngineWorker(engine)
        try:
            rungs = _rungs(self.limits.sequences)
            for turn, users in enumerate(rungs, 1):
                stamped.work.clear()
                self._load(worker, Crowd(users, cost, self.limits.context, seconds / len(rungs)))
                _join(stamped.work, [(s.number, s.started, s.ended) for s in list(engine.recent.steps)], found)  # type: ignore[union-attr]
                progress(turn / len(rungs))
        finally:
            worker.stop()
            engine.executor = stamped.executor
        return found

    def _load(self, worker: EngineWorker, crowd: Crowd) -> None:
        """The requests of a crowd for as long as it asks; returns when all have ended."""
        requests = crowd.requests(crowd.users)
        end = time.monotonic() + crowd.seconds
        open_requests = crowd.users
        over = threading.Event()

        def next_request() -> None:
            nonlocal open_requests
            if time.monotonic() >= end or over.is_set():
                open_requests -= 1
                if open_requests <= 0:
                    over.set()
                return
            prompt, output = next(requests)
            self._uid += 1
            request = self._request(f"load-{self._uid}", prompt, output)

            def hear(events: list[Event]) -> None:
                if any(event.finish is not None for event in events):
                    next_request()

            worker.submit_soon(request, hear)

        for _ in range(crowd.users):
            next_request()
        if not over.wait(crowd.seconds + 120):
            raise ArmillaryError(Code.TOO_SLOW, f"{crowd.users} requests must end within two minutes, and did not")

    def _request(self, name: str, prompt: int, output: int) -> Request:
        tokens = tuple(self._rng.integers(0, self.loaded.spec.vocab_size, prompt).tolist())
        return Request(name, tokens, output, sampling=SamplingParams(temperature=0.0, max_tokens=output))

    def _scattered(self, point: Point) -> list[int]:
        """Blocks as an engine that has run for a while would give them: anywhere."""
        needed = point.blocks(self.limits.block_size)
        return [int(block) for block in self._rng.permutation(self.limits.blocks)[:needed]]

    def _step(self, point: Point, blocks: list[int]) -> Step:
        entries = []
        taken = 0
        for start, count, rows in point.shares:
            self._uid += 1
            request = self._request(f"step-{self._uid}", start + count, 1)
            sequence = Sequence(request, 0, self._uid, 0.0)
            needed = -(-(start + count) // self.limits.block_size)
            sequence.blocks = blocks[taken : taken + needed]
            taken += needed
            entries.append(Entry(sequence, start, count, rows))
        return Step(0, entries, tokens=sum(entry.count for entry in entries))

    def describe(self) -> dict[str, Any]:
        """The settings that bear on a step's time."""
        plan = self.loaded.plan
        fast, group = self._settings.int8_activations, self._settings.quantization_group
        return {
            "dtype": plan.dtype,
            "kv_dtype": plan.kv_dtype,
            "kernels": plan.kernels,
            "threads": plan.threads,
            "block_size": plan.block_size,
            "block_bytes": self.block_bytes,
            "max_running": plan.max_running,
            "max_step_tokens": plan.max_step_tokens,
            "max_context": plan.max_context,
            **({"int8_activations": True} if fast else {}),
            **({} if group is None else {"quantization_group": group}),
        }

    def release(self) -> None:
        """Give the memory back."""
        self.loaded.release()


class Stamped:
    """An executor that notes what each step asks, and leaves it to another."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.work: dict[int, StepWork] = {}
        """Number of the step -> its work."""

    def run(self, step: Step) -> StepResult:
        self.work[step.index] = work_of(step)
        return self.executor.run(step)


def _rungs(most: int) -> list[int]:
    """Numbers of requests at once: 1, 2, 4, ... and the most that run together."""
    found = [1]
    while 2 * found[-1] < most:
        found.append(2 * found[-1])
    return found if most == 1 else [*found, most]


def _join(work: dict[int, StepWork], times: list[tuple[int, float, float]], into: Lived) -> None:
    """Bring the work of steps and their times together; a gap is known where the next step has the next number."""
    for (number, started, ended), after in zip(times, [*times[1:], None], strict=True):
        if number not in work or ended <= started:
            continue
        gap = after[1] - ended if after is not None and after[0] == number + 1 else None
        into.add(work[number], ended - started, gap)
