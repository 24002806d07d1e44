"""What a simulated system counts by itself, beside what becomes of each request: the other sides of operational laws.

Requests know when they were due and when they ended, and executors add up the seconds that they predict. Neither is
asked here: how many requests are in the system is counted as they come and go and added up over time, and how long
replicas work is told by their clocks, less the time in which those had nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

from armillary.twin.member import Member


class Since(NamedTuple):
    """From when on a simulation is judged.

    Attributes:
        at: seconds; what happens before prepares it.
        first: number of the first request that is judged; none of them is due before.
    """

    at: float = 0.0
    first: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted from `begins` to the end of a simulation.

    Attributes:
        area_s: the integral over time of how many of the requests that are judged were in the system.
        working_s: seconds in which replicas did not wait for work, by their clocks, added up over replicas.
        coming_s: seconds in which requests came, and how many were answered within them, with how many tokens; those
            that had come before are among them.
        held_s: seconds of replicas, working or not.
        steps: that executors were asked for, and `step_s` seconds of all of them with the pauses after them, as
            predicted.
        tokens: sampled, and `answered` tokens of answers, both from the simulation's start: what was begun before
            `begins` ends after it.
        whole_s: seconds of the whole simulation.
    """

    begins: float
    area_s: float
    coming_s: float
    ended: int
    ended_tokens: int
    working_s: float
    held_s: float
    steps: int
    step_s: float
    tokens: int
    answered: int
    whole_s: float


class Census:
    """Counts requests as they come and go.

    Args:
        since: which of them.
    """

    def __init__(self, since: Since = Since()) -> None:
        self.since = since
        self._present = 0
        self._area_s = 0.0
        self._reached = since.at
        """Up to when `_area_s` is known."""
        self._leaving: list[tuple[float, bool, int]] = []
        """When those will leave who are known to, whether they are judged, and tokens of their answers (a heap)."""
        self._came = since.at
        """When the last request came."""
        self._answered = (0, 0)
        """Requests and tokens of answers that ended since it began, and up to when the last request came."""
        self._answered_then = (0, 0)
        self._before: dict[int, tuple[float, float, int, float]] = {}
        """Of each replica that there was when it began: its clock, its idle seconds, steps, and their seconds."""

    def begin(self, members: Iterable[Member]) -> None:
        """Take what replicas have done up to now as done before. They have taken every step that begins before."""
        self._before = {member.index: _done(member) for member in members}

    def came(self, row: int, due: float, now: float) -> None:
        """A request is there, whose client wanted it sent earlier: reading it took that long."""
        self._pass(now)
        self._came, self._answered_then = now, self._answered
        if row >= self.since.first:
            self._present += 1
            self._area_s += now - due

    def left(self, row: int, at: float, tokens: int = 0) -> None:
        """A request will have left by then, which is not before anything that was told.

        Args:
            tokens: of its answer; 0 where it was not answered in full.
        """
        heappush(self._leaving, (at, row >= self.since.first, tokens))

    def counts(self, members: Iterable[Member], end: float, answered: int) -> Counts:
        """All of it, up to the end.

        Args:
            answered: tokens of all answers.
        """
        self._pass(end)
        working = held = seconds = 0.0
        steps = tokens = 0
        for member in members:
            clock, idle, count, taken = _done(member)
            start, idle_before, count_before, taken_before = self._before.get(member.index, (member.began, 0.0, 0, 0.0))
            working += clock - start - (idle - idle_before)
            until = end if member.ended is None else member.ended
            held += max(0.0, until - max(member.began, self.since.at))
            steps += count - count_before
            seconds += taken - taken_before
            tokens += member.replica.executor.totals.rows
        coming = self._came - self.since.at
        return Counts(
            self.since.at, self._area_s, coming, *self._answered_then,
            working, held, steps, seconds, tokens, answered, end,
        )  # fmt: skip

    def _pass(self, now: float) -> None:
        """Let time pass up to now."""
        while self._leaving and self._leaving[0][0] <= now:
            at, judged, tokens = heappop(self._leaving)
            if judged:
                self._area_s += self._present * (at - self._reached)
                self._reached = at
                self._present -= 1
            if tokens and at > self.since.at:
                self._answered = self._answered[0] + 1, self._answered[1] + tokens
        if self._present:
            self._area_s += self._present * (now - self._reached)
        self._reached = now


def _done(member: Member) -> tuple[float, float, int, float]:
    """What a replica has done up to now: its clock, idle seconds, steps, and seconds of those with their pauses."""
    totals = member.replica.executor.totals
    return member.replica.clock.now(), member.idle_s, totals.steps, totals.busy_s + totals.between_s
