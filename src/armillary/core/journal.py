"""The journal: what went in, what was decided and when, one JSON line each.

The lines of a run, in their order, are enough to run it again and obtain the same lines: the first carries
the scheduler's configuration, submissions carry their tokens, steps carry their times, tokens and failures.
What was refused, and a cancellation that found nothing to end, leave no line. Steps taken in one (a leap) are one line,
which `expand` makes into theirs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

from armillary.core.config import SchedulerConfig
from armillary.core.leap import Leap
from armillary.core.request import FinishReason, Request
from armillary.core.step import Event, Step


class Journal:
    """Writes lines through a function that somebody hands it; the core does no I/O of its own.

    Args:
        write: takes one line without its line end. Whatever it raises reaches the engine's caller.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def _line(self, record: dict[str, object]) -> None:
        self._write(_text(record))

    def opened(self, config: SchedulerConfig) -> None:
        self._line({"scheduler": asdict(config)})

    def submitted(self, request: Request, now: float) -> None:
        self._line(
            {
                "submit": request.id,
                "at": now,
                "prompt": list(request.prompt),
                "max_tokens": request.max_tokens,
                "min_tokens": request.min_tokens,
                "n": request.n,
                "stop_ids": sorted(request.stop_ids),
                "priority": request.priority,
                "deadline": request.deadline,
                "expires": request.expires,
                "identity": request.identity,
                "reuse_prefix": request.reuse_prefix,
                "handed": request.handed,
                "hold": request.hold,
            }
        )

    def cancelled(self, request_id: str, index: int | None, reason: FinishReason, now: float) -> None:
        self._line({"cancel": request_id, "at": now, "index": index, "reason": reason})

    def released(self, request_id: str, now: float) -> None:
        """Blocks that an ended request had held are given back."""
        self._line({"release": request_id, "at": now})

    def expired(self, events: list[Event], now: float) -> None:
        """Choices whose time was over before the next step was chosen."""
        self._line({"expire": [[e.request_id, e.index] for e in events], "at": now})

    def stepped(
        self, step: Step, started: float, ended: float, free: int, events: list[Event], failure: str | None
    ) -> None:
        """One step: `run` has [request, choice, first position, count] for each entry.

        `failed` says why the step as a whole failed; `errors` why a choice did, as [request, choice, message].
        """
        self._line(
            {
                "step": step.index,
                "at": started,
                "until": ended,
                "run": [[e.sequence.request.id, e.sequence.index, e.start, e.count] for e in step.entries],
                "admitted": [[s.request.id, s.index, s.cached] for s in step.admitted],
                "preempted": [[s.request.id, s.index] for s in step.preempted],
                "copies": step.copies,
                "free": free,
                "tokens": [[e.request_id, e.index, e.token] for e in events if e.token is not None],
                "ended": [[e.request_id, e.index, e.finish] for e in events if e.finish is not None],
                "errors": [[e.request_id, e.index, e.error] for e in events if e.error is not None],
                "failed": failure,
            }
        )

    def leapt(self, leap: Leap) -> None:
        """Steps of one batch, in each of which each sequence computes one position and gets the same token.

        `run` has [request, choice, position in the first step, token]; `ended` is of the last step. A first step that
        admitted somebody, or might have, has a line of its own.
        """
        alone = 0 if leap.step is None else 1
        if leap.step is not None:
            (started, ended), events = leap.times[0], leap.events(0)
            self.stepped(leap.first_step, started, ended, leap.free[0], events, None)
        if len(leap) == alone:
            return
        last = leap.events(len(leap) - 1)
        self._line(
            {
                "leap": leap.first + alone,
                "times": leap.times[alone:],
                "free": leap.free[alone:],
                "run": [
                    [event.request_id, event.index, start + alone, event.token]
                    for event, start in zip(last, leap.starts(), strict=True)
                ],
                "ended": [[e.request_id, e.index, e.finish] for e in last if e.finish is not None],
            }
        )


def expand(line: str) -> list[str]:
    """The lines that a line stands for: those of the steps of a leap, else itself."""
    if not line.startswith('{"leap":'):
        return [line]
    leap = json.loads(line)
    run, last = leap["run"], len(leap["times"]) - 1
    return [
        _text(
            {
                "step": leap["leap"] + number,
                "at": started,
                "until": ended,
                "run": [[name, index, start + number, 1] for name, index, start, _ in run],
                "admitted": [],
                "preempted": [],
                "copies": [],
                "free": free,
                "tokens": [[name, index, token] for name, index, _, token in run],
                "ended": leap["ended"] if number == last else [],
                "errors": [],
                "failed": None,
            }
        )
        for number, ((started, ended), free) in enumerate(zip(leap["times"], leap["free"], strict=True))
    ]


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)  # `json.dumps` would make one for each line


def _text(record: dict[str, object]) -> str:
    return _ENCODER.encode(record)
