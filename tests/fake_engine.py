"""An engine whose executor computes nothing: tokens come from a rule, steps can be slow, fail or hang."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.scheduler import Scheduler
from armillary.core.step import Step, StepResult
from armillary.runtime.clock import WallClock


@dataclass
class FakeExecutor:
    """`rule(request_id, choice, generated)` is the next token; `before` runs at the start of each step."""

    rule: Callable[[str, int, int], int] = lambda request_id, index, generated: 5
    before: Callable[[Step], None] = lambda step: None
    steps: int = 0
    entered: threading.Event = field(default_factory=threading.Event)

    def run(self, step: Step) -> StepResult:
        self.steps += 1
        self.entered.set()
        self.before(step)
        tokens = []
        for entry in step.entries:
            sequence = entry.sequence
            for row in range(entry.rows):
                index = row if entry.rows > 1 else sequence.index
                tokens.append(self.rule(sequence.request.id, index, sequence.generated))
        return StepResult(tokens)


def fake_engine(executor: FakeExecutor, **settings: object) -> Engine:
    config = SchedulerConfig(**{"num_blocks": 32, "block_size": 4, "max_context": 120, **settings})  # type: ignore[arg-type]
    return Engine(Scheduler(config), executor, WallClock(), lambda events: None)
