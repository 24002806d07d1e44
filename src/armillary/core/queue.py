"""The waiting queue: sequences in the order of a policy whose keys may change with time."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import inf

from armillary.core.order import Key, Order
from armillary.core.request import Sequence


class WaitingQueue:
    """A heap over `Order.key`, brought up to date only for the sequences whose key has changed.

    Entries go stale when a sequence leaves or changes key; they are dropped when they surface, and all at
    once when they outnumber the live ones.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._heap: list[tuple[Key, int, int, Sequence]] = []
        self._changes: list[tuple[float, int, Sequence]] = []
        self._ticket = 0
        self._waiting: dict[int, tuple[Sequence, Key]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, sequence: Sequence, now: float) -> None:
        """Enter a sequence, or enter it anew under the key that it has at `now`."""
        key = self._order.key(sequence, now)
        self._waiting[sequence.uid] = (sequence, key)
        self._ticket += 1
        heappush(self._heap, (key, sequence.uid, self._ticket, sequence))
        change = self._order.changes_at(sequence, now)
        if change < inf:
            heappush(self._changes, (change, self._ticket, sequence))
        if len(self._heap) + len(self._changes) > 128 + 4 * len(self._waiting):
            self._compact()

    def refresh(self, now: float) -> None:
        """Bring keys up to date that have changed by `now`."""
        changes = self._changes
        while changes and changes[0][0] <= now:
            _, _, sequence = heappop(changes)
            if sequence.uid in self._waiting:
                self.push(sequence, now)

    def peek(self) -> Sequence | None:
        """The sequence to serve next, left in place."""
        heap = self._heap
        while heap:
            key, uid, _, sequence = heap[0]
            entry = self._waiting.get(uid)
            if entry is not None and entry[1] == key:
                return sequence
            heappop(heap)
        return None

    def remove(self, sequence: Sequence) -> bool:
        """Take a sequence out, wherever it stands; False if it was not waiting."""
        return self._waiting.pop(sequence.uid, None) is not None

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.uid in self._waiting

    def _compact(self) -> None:
        self._heap = [e for e in self._heap if e[1] in self._waiting and self._waiting[e[1]][1] == e[0]]
        heapify(self._heap)
        self._changes = [e for e in self._changes if e[2].uid in self._waiting]
        heapify(self._changes)
