"""An engine that lives a journal again: what went in goes in again, and the executor finds what was found."""

from __future__ import annotations

import json
from typing import Any

from armillary.core.clock import VirtualClock
from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.journal import Journal
from armillary.core.request import FinishReason, Request
from armillary.core.scheduler import Scheduler
from armillary.core.step import Step, StepResult


class Recorded:
    """Answers each step with what the journal says was found, and takes as long."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.line: dict[str, Any] = {}

    def run(self, step: Step) -> StepResult:
        line = self.line
        self.clock.advance_to(line["until"])
        if line["failed"] is not None:
            name, _, message = line["failed"].partition(": ")
            raise type(name, (Exception,), {})(message)
        tokens: dict[tuple[str, int], list[int]] = {}
        for name, index, token in line["tokens"]:
            tokens.setdefault((name, index), []).append(token)
        errors = {(name, index): message for name, index, message in line["errors"]}
        result = StepResult([], failures={}, more={})
        assert result.failures is not None and result.more is not None
        for position, entry in enumerate(step.entries):
            s = entry.sequence
            for row in range(entry.rows):
                first, *following = tokens.get((s.request.id, s.index + row), [0])
                result.more[len(result.tokens)] = [(token, None) for token in following]
                result.tokens.append(first)
            for index in s.choices:
                if (s.request.id, index) in errors:
                    result.failures[position] = errors[s.request.id, index]
        return result


def replay(lines: list[str]) -> list[str]:
    """Run a journal again; returns the journal of that run."""
    records = [json.loads(line) for line in lines]
    again: list[str] = []
    clock = VirtualClock(min((r.get("at", 0.0) for r in records), default=0.0))
    executor = Recorded(clock)
    config = SchedulerConfig(**records[0]["scheduler"])
    engine = Engine(Scheduler(config), executor, clock, lambda events: None, Journal(again.append))
    for record in records[1:]:
        clock.advance_to(record["at"])
        if "submit" in record:
            fields = {key: value for key, value in record.items() if key not in ("submit", "at")}
            fields.update(prompt=tuple(record["prompt"]), stop_ids=frozenset(record["stop_ids"]))
            engine.submit(Request(id=record["submit"], **fields))
        elif "cancel" in record:
            engine.cancel(record["cancel"], record["index"], FinishReason(record["reason"]))
        elif "release" in record:
            engine.release(record["release"])
        elif "expire" in record:
            engine.expire()
        else:
            executor.line = record
            assert engine.step()
    return again
