"""Orderings: which sequence is served first, and so which one gives way.

An ordering turns a sequence into a key; the smallest key is admitted first and the largest is preempted
first. Keys may change as time passes; `changes_at` says when, so that nothing is sorted anew at every step.

No ordering lets a request starve. Once a request has been in the system for `starvation_s`, only requests
submitted before it are admitted before it, whatever arrives later; nobody is admitted past the head of the
queue, and those that run end within `max_tokens`. So its wait after that moment is at most the work that was
accepted before it plus the work that was already running.

To add an ordering, write a class with these two methods and put it into `ORDERS`.
"""

from __future__ import annotations

from math import inf
from typing import Protocol

from armillary.core.request import Sequence
from armillary.errors import ArmillaryError, Code

Key = tuple[float, ...]


class Pace:
    """How long a step takes and how much it computes: exponentially weighted means of the engine's own steps."""

    __slots__ = ("seconds_per_step", "tokens_per_step")

    def __init__(self) -> None:
        self.seconds_per_step = 0.0
        self.tokens_per_step = 0.0

    def observe(self, seconds: float, tokens: int = 0) -> None:
        old = self.seconds_per_step
        if old == 0.0:
            self.seconds_per_step, self.tokens_per_step = seconds, float(tokens)
        else:
            self.seconds_per_step = old + 0.1 * (seconds - old)
            self.tokens_per_step += 0.1 * (tokens - self.tokens_per_step)

    @property
    def tokens_per_second(self) -> float:
        """Token positions computed in a second of stepping; 0 before the first step that took time."""
        return self.tokens_per_step / self.seconds_per_step if self.seconds_per_step > 0.0 else 0.0


class Order(Protocol):
    """One ordering. Ties are broken by the order of submission."""

    def __init__(self, starvation_s: float, pace: Pace) -> None: ...

    def key(self, sequence: Sequence, now: float) -> Key:
        """Smaller runs first."""
        ...

    def changes_at(self, sequence: Sequence, now: float) -> float:
        """The first time after `now` at which `key` may differ from what it is now; inf for never."""
        ...


class FirstComeFirstServed:
    """By arrival. Nothing is ever passed by a later request, so nothing starves."""

    def __init__(self, starvation_s: float, pace: Pace) -> None:
        pass

    def key(self, sequence: Sequence, now: float) -> Key:
        return (sequence.arrival,)

    def changes_at(self, sequence: Sequence, now: float) -> float:
        return inf


class Priority:
    """By priority (smaller first), then arrival; after `starvation_s` a request goes before all younger ones."""

    def __init__(self, starvation_s: float, pace: Pace) -> None:
        self._starvation_s = starvation_s

    def key(self, sequence: Sequence, now: float) -> Key:
        if now >= sequence.arrival + self._starvation_s:
            return (0.0, 0.0, sequence.arrival)
        return (1.0, sequence.request.priority, sequence.arrival)

    def changes_at(self, sequence: Sequence, now: float) -> float:
        promotion = sequence.arrival + self._starvation_s
        return promotion if promotion > now else inf


class EarliestDeadline:
    """Earliest deadline first; what can no longer meet its deadline, or has none, goes behind what can.

    A sequence can no longer meet its deadline when one step per missing token at the engine's present pace
    would end after it. After `starvation_s` in the system a request goes before all younger ones. Because the
    pace changes too, keys are computed anew every `starvation_s / 30`, so a demotion may come or go that late.
    """

    def __init__(self, starvation_s: float, pace: Pace) -> None:
        self._starvation_s = starvation_s
        self._pace = pace

    def _latest_start(self, sequence: Sequence) -> float:
        deadline = sequence.request.deadline
        if deadline is None:
            return -inf
        return deadline - (sequence.limit - len(sequence.tokens)) * self._pace.seconds_per_step

    def key(self, sequence: Sequence, now: float) -> Key:
        if now >= sequence.arrival + self._starvation_s:
            return (0.0, 0.0, sequence.arrival)
        deadline = sequence.request.deadline
        if deadline is None or now >= self._latest_start(sequence):
            return (2.0, 0.0, sequence.arrival)
        return (1.0, deadline, sequence.arrival)

    def changes_at(self, sequence: Sequence, now: float) -> float:
        promotion = sequence.arrival + self._starvation_s
        if promotion <= now:
            return inf
        if sequence.request.deadline is None:
            return promotion
        times = (promotion, self._latest_start(sequence), now + self._starvation_s / 30)
        return min(t for t in times if t > now)


ORDERS: dict[str, type[Order]] = {
    "fcfs": FirstComeFirstServed,
    "priority": Priority,
    "deadline": EarliestDeadline,
}


def make_order(name: str, starvation_s: float, pace: Pace) -> Order:
    """The ordering of that name.

    Raises:
        ArmillaryError: INVALID_DEPLOYMENT, with the names there are.
    """
    if name not in ORDERS:
        raise ArmillaryError(
            Code.INVALID_DEPLOYMENT, f"order must be one of {', '.join(ORDERS)}, given {name!r}", "order"
        )
    return ORDERS[name](starvation_s, pace)
