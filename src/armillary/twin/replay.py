"""A journal lived again: what went in goes in at its time, and every step takes as long and finds what it did."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, NoReturn

from armillary.core.clock import VirtualClock
from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.journal import Journal, expand
from armillary.core.request import FinishReason, Request
from armillary.core.scheduler import Scheduler
from armillary.core.step import Step, StepResult
from armillary.errors import ArmillaryError, Code

Record = dict[str, Any]
"""A line of a journal."""
Runs = dict[tuple[int, int], list[int]]
"""What a request was told: (choice, tokens generated before) -> the tokens that one step brought."""


@dataclass
class Life:
    """One engine's journal, from its first line on.

    Attributes:
        first: the number of its first line in the file, from 1.
        unfinished: whether a last line was left out because it breaks off.
    """

    first: int
    lines: list[str] = field(default_factory=list)
    unfinished: bool = False


def read_journal(path: str | Path) -> list[Life]:
    """The lives that a journal's file holds: one for each time that an engine began to write it.

    Steps taken in one (a leap) have a line each, as if they had been taken one by one; lines are counted so.

    Raises:
        ArmillaryError: NOT_FOUND where it cannot be read; INVALID_REQUEST where it is no journal.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArmillaryError(
            Code.NOT_FOUND, f"a journal must be a readable text file, given {str(path)!r}: {error}", "journal"
        ) from error
    lives: list[Life] = []
    for number, line in enumerate(_expanded(text), start=1):
        if line.startswith('{"scheduler":'):
            lives.append(Life(number))
        elif not lives and line:
            _refuse(number, "a journal begins with the scheduler's configuration")
        if line:
            lives[-1].lines.append(line)
    if not lives:
        _refuse(1, "the file is empty")
    if not text.endswith("\n"):
        lives[-1].lines.pop()
        lives[-1].unfinished = True
    return [life for life in lives if life.lines]


def _expanded(text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            yield from expand(line)
        except (KeyError, TypeError, ValueError) as error:
            _refuse(number, f"{type(error).__name__}: {error}")


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
            _refuse(number, f"{type(error).__name__}: {error}")
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
                _refuse(number, f"{name!r} was never submitted")
            of_request, lengths = told[name]
            if (name, index) not in runs:
                runs[name, index] = of_request[index, lengths.get(index, 0)] = []
            runs[name, index].append(token)
            lengths[index] = lengths.get(index, 0) + 1
    return answers


def read_lines(lines: Iterable[str], first: int = 1) -> list[Record]:
    """The lines of a journal as records.

    Raises:
        ArmillaryError: INVALID_REQUEST, naming the line that is none.
    """
    return [_record(line, number) for number, line in enumerate(lines, start=first)]


def _record(line: str, number: int) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        _refuse(number, str(error))
    if not isinstance(record, dict):
        _refuse(number, f"a line must be a JSON object, given {type(record).__name__}")
    return record


def _refuse(number: int, why: str) -> NoReturn:
    raise ArmillaryError(
        Code.INVALID_REQUEST,
        f"a journal must be one that an engine wrote; line {number} cannot be read: {why}",
        "journal",
    )
