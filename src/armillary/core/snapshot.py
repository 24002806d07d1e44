"""The state of an engine at one moment, copied between two steps so that it can be looked at leisurely."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.prefix import Link
from armillary.core.recent import StepRecord
from armillary.core.request import Sequence
from armillary.core.stats import SchedulerStats

FREE, KEPT = -1, -2
"""Owners of blocks that no sequence holds: with nothing in them, and with a prefix that can be found again."""


@dataclass(frozen=True, slots=True)
class SequenceState:
    """One sequence; `blocks` in the order of its positions."""

    uid: int
    request_id: str
    owner: str
    choice: int
    running: bool
    preempted: bool
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    generated_tokens: int
    max_tokens: int
    priority: int
    age_s: float
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An engine between two steps.

    Attributes:
        now: seconds of the engine's clock.
        running, waiting: how many sequences; `sequences` has all of the first and the eldest of the second.
        holders: how many sequences hold each block.
        kept: what the prefix index can find in each block.
        steps: the latest ones, oldest first.
    """

    now: float
    config: SchedulerConfig
    counters: SchedulerStats
    running: int
    waiting: int
    sequences: list[SequenceState]
    holders: list[int]
    kept: list[Link | None]
    steps: list[StepRecord]

    def owners(self) -> list[int]:
        """Of each block the eldest sequence that holds it, FREE, or KEPT."""
        owners = [FREE if link is None else KEPT for link in self.kept]
        for sequence in sorted(self.sequences, key=lambda s: -s.uid):
            for block in sequence.blocks:
                owners[block] = sequence.uid
        return owners


def take_snapshot(engine: Engine, most_waiting: int, most_steps: int) -> Snapshot:
    """Copy what there is to see. In the engine's thread; takes some microseconds per sequence and thousand blocks."""
    engine.settle()
    scheduler = engine.scheduler
    now = engine.clock.now()
    sequences = [_state(sequence, now) for sequence in scheduler.running]
    waiting = (s for alive in scheduler._alive.values() for s in alive if not s.running)
    sequences += [_state(sequence, now) for sequence in islice(waiting, most_waiting)]
    steps = engine.recent.steps if engine.recent is not None else ()
    return Snapshot(
        now=now,
        config=scheduler.config,
        counters=replace(scheduler.stats, finished=dict(scheduler.stats.finished)),
        running=scheduler.running_count,
        waiting=scheduler.waiting_count,
        sequences=sequences,
        holders=scheduler.pool.holder_counts(),
        kept=scheduler.index.links(),
        steps=list(islice(steps, max(0, len(steps) - most_steps), None)),
    )


def kept_blocks(engine: Engine) -> int:
    """Blocks that nobody holds and whose prefix can be found again. From any thread; a step's work may be missing."""
    held, links = engine.scheduler.pool.holder_counts(), engine.scheduler.index.links()
    return sum(1 for holders, link in zip(held, links, strict=True) if link is not None and not holders)


def _state(sequence: Sequence, now: float) -> SequenceState:
    request = sequence.request
    return SequenceState(
        uid=sequence.uid,
        request_id=request.id,
        owner=request.owner,
        choice=sequence.index,
        running=sequence.running,
        preempted=not sequence.running and sequence.admitted_length > 0,
        prompt_tokens=sequence.prompt_length,
        cached_tokens=sequence.cached,
        computed_tokens=sequence.computed,
        generated_tokens=sequence.generated,
        max_tokens=request.max_tokens,
        priority=request.priority,
        age_s=now - sequence.arrival,
        blocks=tuple(sequence.blocks),
    )
