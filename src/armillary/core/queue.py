"""The waiting queue: sequences in the order of a policy whose keys may change with time."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import inf

from armillary.core.load import QueueLoad
from armillary.core.order import Key, Order
from armillary.core.request import Sequence


class WaitingQueue:
    """A heap over `Order.key`, brought up to date only for the sequences whose key has changed.

    An entry goes stale when its sequence leaves or is entered anew under another ticket. Stale entries are
    dropped when they surface, and all at once when they outnumber the live ones.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._heap: list[tuple[Key, int, int, Sequence]] = []
        self._changes: list[tuple[float, int, Sequence]] = []
        self._ticket = 0
        self._tickets: dict[int, int] = {}
        """Of each waiting sequence, by uid, the ticket of its one valid entry."""
        self.load = QueueLoad()
        """What waits, for whoever limits or estimates it."""

    def __len__(self) -> int:
        return len(self._tickets)

    def push(self, sequence: Sequence, now: float) -> None:
        """Enter a sequence, or enter it anew under the key that it has at `now`."""
        key = self._order.key(sequence, now)
        self._ticket += 1
        if sequence.uid not in self._tickets:  # while it waits, none of these change
            self.load.enter(sequence.request.owner, 1 + sequence.forks, len(sequence.tokens))
        self._tickets[sequence.uid] = self._ticket
        heappush(self._heap, (key, sequence.uid, self._ticket, sequence))
        change = self._order.changes_at(sequence, now)
        if now < change < inf:
            heappush(self._changes, (change, self._ticket, sequence))
        self._compact()

    def refresh(self, now: float) -> None:
        """Bring keys up to date that have changed by `now`."""
        while self._changes and self._changes[0][0] <= now:
            _, ticket, sequence = heappop(self._changes)
            if self._tickets.get(sequence.uid) == ticket:
                self.push(sequence, now)

    @property
    def changes_at(self) -> float:
        """A time before which no key changes."""
        return self._changes[0][0] if self._changes else inf

    def peek(self) -> Sequence | None:
        """The sequence to serve next, left in place."""
        heap = self._heap
        while heap:
            _, uid, ticket, sequence = heap[0]
            if self._tickets.get(uid) == ticket:
                return sequence
            heappop(heap)
        return None

    def remove(self, sequence: Sequence) -> bool:
        """Take a sequence out, wherever it stands; False if it was not waiting."""
        if self._tickets.pop(sequence.uid, None) is None:
            return False
        self.load.leave(sequence.request.owner, 1 + sequence.forks, len(sequence.tokens))
        self._compact()
        return True

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.uid in self._tickets

    def _compact(self) -> None:
        """Drop every stale entry, if they are more than half."""
        tickets = self._tickets
        if len(self._heap) + len(self._changes) <= 128 + 4 * len(tickets):
            return
        self._heap = [e for e in self._heap if tickets.get(e[1]) == e[2]]
        heapify(self._heap)
        self._changes = [e for e in self._changes if tickets.get(e[2].uid) == e[1]]
        heapify(self._changes)
