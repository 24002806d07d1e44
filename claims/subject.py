"""What claims are measured on: the bundled model in the real engine, and a driver that times every token.

The driver decides only when a request is handed to the engine (a `Gate`); what happens then is the scheduler's and the
executor's, the same that serve. Policies of the past (request-level batches, contiguous reservation) are gates
that hold requests back, so nothing but the policy differs.

Its clock is the processor time of this process, whose engine has one thread, and it skips the time in which nothing
runs: it shows what the wall would show on a machine with nothing else to do, on a busy machine too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from armillary.core.request import FinishReason, Request
from armillary.core.step import Event
from armillary.deployment import EngineSettings
from armillary.measure.lengths import Lognormal, draw
from armillary.runtime.sampling import SamplingParams


@dataclass(frozen=True)
class Job:
    """A request to be: `due` seconds after the run's start, with exactly `output` tokens to generate."""

    prompt: tuple[int, ...]
    output: int
    due: float = 0.0


@dataclass
class Seen:
    """What became of a job. Times are seconds from the run's start, on the driver's clock."""

    job: Job
    times: list[float] = field(default_factory=list)
    """When each token was delivered."""
    tokens: list[int] = field(default_factory=list)
    handed: float = 0.0
    """When it was handed to the engine."""
    cached: int = 0

    @property
    def ttft(self) -> float:
        """Seconds from handing the job to the engine to its first token."""
        return self.times[0] - self.handed

    @property
    def e2e(self) -> float:
        """Seconds from when the job was due to its last token."""
        return self.times[-1] - self.job.due

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


@dataclass
class Run:
    """One run of jobs through an engine."""

    seen: list[Seen]
    duration: float
    computed_tokens: int
    """Tokens that went through the model."""
    held: list[tuple[int, int, int]]
    """After each step during which jobs waited: sequences running, tokens in their KV, token slots allotted."""

    @property
    def output_rate(self) -> float:
        """Generated tokens per second."""
        return sum(len(seen.tokens) for seen in self.seen) / self.duration

    @property
    def outputs(self) -> list[list[int]]:
        """Generated tokens, job by job."""
        return [seen.tokens for seen in self.seen]


Gate = Callable[[Sequence[Job], Sequence[Seen]], int]
"""Given the jobs that are due and not yet handed over, and those handed over and not ended: how many to hand over."""


def at_once(waiting: Sequence[Job], alive: Sequence[Seen]) -> int:
    """Every job is handed over when it is due; the scheduler admits it between any two steps."""
    return len(waiting)


class Subject:
    """The bundled model in an engine made for a claim."""

    def __init__(self, **settings: Any) -> None:
        # Here and not above: listing claims needs no torch.
        from armillary.models.locate import locate
        from armillary.runtime.load import build_engine

        self._events: list[Event] = []
        # One thread, so that processor time is the time that a machine with nothing else to do would take.
        loaded = build_engine(locate("isles"), EngineSettings(threads=1, **settings), self._events.extend)
        self.engine = loaded.engine
        self.vocab_size = loaded.spec.vocab_size
        self._runs = 0

    def jobs(
        self,
        rng: np.random.Generator,
        prompts: Sequence[int],
        outputs: Sequence[int],
        dues: Sequence[float] | None = None,
    ) -> list[Job]:
        """Jobs with random prompts of the given lengths."""
        return [
            Job(tuple(rng.integers(0, self.vocab_size, size=int(p)).tolist()), int(o), float(d))
            for p, o, d in zip(prompts, outputs, dues if dues is not None else [0.0] * len(prompts), strict=True)
        ]

    def run(self, jobs: Sequence[Job], gate: Gate = at_once, reserved: Callable[[Job], int] | None = None) -> Run:
        """Run `jobs` (in order of `due`) to their ends.

        Args:
            reserved: token slots that a job's sequence is allotted from its start; None: those of its blocks.
        """
        engine, scheduler = self.engine, self.engine.scheduler
        self._runs += 1
        alive: dict[str, Seen] = {}
        everything = [Seen(job) for job in jobs]
        coming = deque(everything)
        waiting: deque[Seen] = deque()
        held: list[tuple[int, int, int]] = []
        computed = scheduler.stats.computed_tokens
        start = time.process_time()
        skipped = now = 0.0
        while coming or waiting or alive:
            now = time.process_time() - start + skipped
            while coming and coming[0].job.due <= now:
                waiting.append(coming.popleft())
            for _ in range(gate([seen.job for seen in waiting], list(alive.values())) if waiting else 0):
                seen = waiting.popleft()
                seen.handed = now
                name = f"{self._runs}-{id(seen)}"
                alive[name] = seen
                engine.submit(_request(name, seen.job))
            if not engine.step():
                if not coming:
                    raise RuntimeError("the gate holds jobs back although nothing runs")
                # Nothing runs until the next arrival: time that would be slept is skipped instead.
                skipped += max(0.0, coming[0].job.due - now)
                continue
            now = time.process_time() - start + skipped
            for event in self._events:
                seen = alive[event.request_id]
                if event.token is not None:
                    seen.times.append(now)
                    seen.tokens.append(event.token)
                seen.cached = max(seen.cached, event.cached)
                if event.finish is not None:
                    if event.finish is not FinishReason.LENGTH:
                        raise RuntimeError(f"a request of the run ended with {event.finish}: {event.error}")
                    del alive[event.request_id]
            self._events.clear()
            if waiting or scheduler.waiting_count:
                block = scheduler.config.block_size
                slots = sum(
                    len(s.blocks) * block if reserved is None else reserved(alive[s.request.id].job)
                    for s in scheduler.running
                )
                held.append((scheduler.running_count, sum(s.computed for s in scheduler.running), slots))
        return Run(everything, now, scheduler.stats.computed_tokens - computed, held)


def _request(name: str, job: Job) -> Request:
    return Request(
        id=name,
        prompt=job.prompt,
        max_tokens=job.output,
        sampling=SamplingParams(temperature=0.0, max_tokens=job.output, ignore_eos=True),
    )


def heavy_tailed(rng: np.random.Generator, count: int, mean: float, cv: float, limit: int) -> list[int]:
    """Lognormal lengths: most short, a few long."""
    return [int(n) for n in draw(Lognormal(mean, cv, limit), count, rng)]
