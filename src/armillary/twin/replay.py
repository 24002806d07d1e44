"""A journal lived again: what went in goes in at its time, and every step takes as long and finds what it did."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from armillary.core.clock import VirtualClock
from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.journal import Journal
from armillary.core.request import FinishReason, Request
from armillary.core.scheduler import Scheduler
from armillary.core.step import Step, StepResult
from armillary.errors import ArmillaryError
from armillary.measure.journal import Record, read_lines, refuse

Runs = dict[tuple[int, int], list[int]]
"""What a request was told: (choice, tokens generated before) -> the tokens that one step brought."""


class RecordedExecutor:
    """Answers each step with what a journal says was found, and takes as long.

    A step that the journal does not know finds, for each sequence, the tokens that it was told at that place of its
    answer, and 0 where it never got that far.
    """

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.line: Record = {}
        """Of the step to run."""

    def run(self, step: Step) -> StepResult:
        self.clock.advance_to(self.line["until"])
        if self.line["failed"] is not None:
            name, _, message = self.line["failed"].partition(": ")
            raise type(name, (Exception,), {})(message)
        errors = {(name, index): message for name, index, message in self.line["errors"]}
        tokens: list[int] = []
        failures: dict[int, str] = {}
        more: dict[int, list[tuple[int, object]]] = {}
        for position, entry in enumerate(step.entries):
            sequence = entry.sequence
            runs = sequence.request.sampling
            for row in range(entry.rows):
                place = (sequence.index + row, sequence.generated)
                first, *following = runs.get(place, [0]) if isinstance(runs, dict) else [0]
                if following:
                    more[len(tokens)] = [(token, None) for token in following]
                tokens.append(first)
            for index in sequence.choices:
                if (sequence.request.id, index) in errors:
                    failures[position] = errors[sequence.request.id, index]
        return StepResult(tokens, failures=failures, more=more)


def replay(
    lines: list[str], scheduler: Callable[[SchedulerConfig], Scheduler] = Scheduler, *, first: int = 1
) -> list[str]:
    """The journal of an engine that lives a recorded life again.

    Submissions, cancellations and steps come at the times of the record. Where the scheduler decides otherwise
    than the recorded one did, it keeps the times of the record, step by step, and ends with it.

    Args:
        scheduler: another one, to see where it would have decided otherwise.
        first: the number of the first line, for errors.

    Raises:
        ArmillaryError: INVALID_REQUEST where a line cannot be lived again.
    """
    records = read_lines(lines, first)
    again: list[str] = []
    clock = VirtualClock(-inf)  # the first line that has a time sets it
    executor = RecordedExecutor(clock)
    engine: Engine | None = None
    answers = _answers(records, first)
    for number, record in enumerate(records, start=first):
        try:
            if engine is None:
                config = SchedulerConfig(**record["scheduler"])
                engine = Engine(scheduler(config), executor, clock, lambda events: None, Journal(again.append))
                continue
            clock.advance_to(record["at"])
            if "submit" in record:
                _submit(engine, record, answers[number])
            elif "cancel" in record:
                engine.cancel(record["cancel"], record["index"], FinishReason(record["reason"]))
            elif "release" in record:
                engine.release(record["release"])
            elif "expire" in record:
                engine.expire()
            else:
                executor.line = record
                engine.step()
        except (KeyError, TypeError, ValueError) as error:
            refuse(number, f"{type(error).__name__}: {error}")
    return again


def _submit(engine: Engine, record: Record, runs: Runs) -> None:
    fields = {key: value for key, value in record.items() if key not in ("submit", "at")}
    fields.update(prompt=tuple(record["prompt"]), stop_ids=frozenset(record["stop_ids"]), sampling=runs)
    try:
        engine.submit(Request(id=record["submit"], **fields))
    except ArmillaryError:
        pass  # one that decides otherwise may have no room; the record shows that it was let in


def _answers(records: list[Record], first: int) -> dict[int, Runs]:
    """Of each submission, by the number of its line, what the request was told."""
    answers: dict[int, Runs] = {}
    told: dict[str, tuple[Runs, dict[int, int]]] = {}
    for number, record in enumerate(records, start=first):
        if "submit" in record:
            answers[number] = {}
            told[record["submit"]] = (answers[number], {})  # an id may be used again once its request has ended
        runs: dict[tuple[str, int], list[int]] = {}
        for name, index, token in record.get("tokens", ()):
            if name not in told:
                refuse(number, f"{name!r} was never submitted")
            of_request, lengths = told[name]
            if (name, index) not in runs:
                runs[name, index] = of_request[index, lengths.get(index, 0)] = []
            runs[name, index].append(token)
            lengths[index] = lengths.get(index, 0) + 1
    return answers
