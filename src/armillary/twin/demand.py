"""Who asks for what, and when: a workload that reacts to what happens to its requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush, heapreplace
from itertools import accumulate, islice
from math import inf
from typing import NamedTuple

from armillary.core.prefix import Digest, Name, root_digest
from armillary.core.request import Request
from armillary.measure.workload import WorkItem, Workload
from armillary.twin.cost import CostModel
from armillary.twin.replica import quick_digest

_DIGEST: Digest = quick_digest


class Due(NamedTuple):
    """A request on its way to an engine.

    Attributes:
        due: when its client wants it sent; latencies count from here.
        row: its number in the workload.
    """

    due: float
    row: int
    item: WorkItem


class Demand:
    """The requests of a workload in the order in which they reach an engine.

    An open loop's come at their time, a session's turns one after the other, a closed loop's users each after the
    answer before and a pause for thought, as `armillary bench` sends them. Only those on their way, and the turns that
    wait for the one before, are in memory.

    What reads requests for an engine that was measured reads one after another, in the order in which they were due: 64
    that are sent at once do not reach it at once.

    Args:
        items: a workload, or the requests of an open loop in the order of their arrival, made as they are read.
        cost: says how long reading takes.
        desks: requests that can be read at the same time where they take turns, one for each engine.
    """

    def __init__(self, items: Workload | Iterable[WorkItem], cost: CostModel, desks: int = 1) -> None:
        users = items.users if isinstance(items, Workload) else None
        self._source: Iterator[WorkItem] = iter(items.items if isinstance(items, Workload) else items)
        self._closed = users is not None
        self._cost = cost
        self._free = [0.0] * desks
        """When each desk has read what was brought to it (a heap)."""
        self._latest = 0.0
        """When the last request reached an engine."""
        self._soonest: float | None = None
        """`next_time`, until something changes it."""
        self._rows = 0
        self._next: WorkItem | None = None
        self._heap: list[Due] = []
        self._turns: dict[str, deque[tuple[int, WorkItem]]] = {}
        """Sessions with a turn on its way: the turns that wait for it."""
        self._read()
        for _ in range(users or 0):
            self._next_of_user(0.0)

    @property
    def next_time(self) -> float:
        """When the next request reaches an engine; inf when none is on its way."""
        if self._soonest is None:
            if not self._closed:
                while self._next is not None and (not self._heap or (self._next.arrival or 0.0) <= self._heap[0].due):
                    self._arrive(self._next)
                    self._read()
            self._soonest = self._ready(self._heap[0]) if self._heap else inf
        return self._soonest

    def take(self) -> Due:
        """The next request. Only after `next_time` said that there is one."""
        due = heappop(self._heap)
        self._latest = self._ready(due)
        heapreplace(self._free, self._latest + self._cost.held_s(due.item.prompt_tokens))
        self._soonest = None
        return due

    def _ready(self, due: Due) -> float:
        begins = max(due.due, self._free[0]) if self._cost.turns else due.due
        tokens = due.item.prompt_tokens
        read = begins + self._cost.request_s(tokens) - self._cost.held_s(tokens)
        return max(read, self._latest)  # none overtakes another

    def ended(self, item: WorkItem, at: float) -> None:
        """A request has been answered, or refused: what waited for that may come."""
        if item.session is not None:
            waiting = self._turns[item.session]
            if waiting:
                row, turn = waiting.popleft()
                self._send(row, turn, max(turn.arrival or 0.0, at + turn.think))
                return
            del self._turns[item.session]
        if self._closed:
            self._next_of_user(at)

    def _read(self) -> None:
        self._next = next(self._source, None)

    def _arrive(self, item: WorkItem) -> None:
        row = self._rows
        self._rows += 1
        if item.session is not None:
            if item.session in self._turns:
                self._turns[item.session].append((row, item))
                return
            self._turns[item.session] = deque()
        self._send(row, item, item.arrival or 0.0)

    def _next_of_user(self, at: float) -> None:
        """A user takes the next conversation: one request, or all the lines of the next session."""
        item = self._next
        if item is None:
            return
        row = self._rows
        self._rows += 1
        self._read()
        if item.session is not None:
            turns = self._turns[item.session] = deque()
            while self._next is not None and self._next.session == item.session:
                turns.append((self._rows, self._next))
                self._rows += 1
                self._read()
        self._send(row, item, at + item.think)

    def _send(self, row: int, item: WorkItem, due: float) -> None:
        heappush(self._heap, Due(due, row, item))
        self._soonest = None


def knows_all_arrivals(workload: Workload | Iterable[WorkItem]) -> bool:
    """Whether every request comes at a moment that stands in the workload, whatever becomes of the others."""
    return isinstance(workload, Workload) and workload.users is None and workload.columns.session is None


class Prompts:
    """Makes token ids of the wanted lengths: requests begin alike as far as their workload says so, and no further.

    Each request is asked for once, in the order in which they come.
    The tokens of one run, of what is a request's own and of an answer are all the same number, its own: only which
    tokens are equal matters to an engine.

    Args:
        workload: where it is known as a whole, what no later turn repeats is forgotten at once.
        block_size: of the engines, where requests are to bring digests of their blocks along (`quick_digest`), which
            are then made once of what several requests begin with; 0: they bring none.
    """

    def __init__(self, workload: Workload | Iterable[WorkItem] = (), block_size: int = 0) -> None:
        self._size = block_size
        self._of_session: dict[str, list[Name]] = {}
        self._of_run: dict[str, list[Name]] = {}
        """Digests: of the last prompt of each session, and of each run that a prompt began with."""
        self._runs: dict[str, int] = {}
        self._said: dict[str, list[tuple[int, int]]] = {}
        """Of each session, (token, how many) of its last prompt and answer."""
        self._goes_on: bytearray | None = None
        """Of each row, whether a turn comes after it; None where that is not known."""
        if isinstance(workload, Workload):
            before = workload.columns.turn_before()
            self._goes_on = bytearray(len(workload))
            for row in before[before >= 0].tolist():
                self._goes_on[row] = 1

    def request(self, due: Due) -> Request:
        """The request of a workload's line. Its answer will consist of `request.sampling`."""
        item, own = due.item, 2 * due.row
        prompt = item.token_ids
        digests: tuple[Name, ...] = ()
        if prompt is None:
            parts = self._parts(item, own)
            ids: list[int] = []
            for token, tokens in parts:
                ids += [token] * tokens
            prompt = tuple(ids)
            digests = self._digests(item, prompt) if self._size else ()
            if item.session is not None:
                if self._goes_on is None or self._goes_on[due.row]:
                    self._said[item.session] = [*parts, (own, item.output_tokens)]
                else:
                    self._said.pop(item.session, None)
                    self._of_session.pop(item.session, None)
        return Request(
            id=item.id,
            prompt=prompt,
            max_tokens=item.output_tokens,
            priority=item.priority,
            deadline=None if item.deadline is None else due.due + item.deadline,
            sampling=own,
            digests=digests,
        )

    def _digests(self, item: WorkItem, prompt: tuple[int, ...]) -> tuple[Name, ...]:
        """Of the blocks of a prompt but the one with its last token."""
        size, count = self._size, (len(prompt) - 1) // self._size
        known: list[Name] = []
        run, shared = item.prefix[0] if item.prefix else ("", 0)
        if item.session is not None and item.history:
            known, shared = self._of_session.get(item.session, known), item.history
        elif run:
            known = self._of_run.get(run, known)
        found = known[: min(shared // size, count)]
        rest = iter(prompt[len(found) * size : count * size])
        parent = found[-1] if found else root_digest("")
        found += islice(accumulate(zip(*[rest] * size, strict=True), _DIGEST, initial=parent), 1, None)
        if run and not item.history and shared // size > len(known):
            self._of_run[run] = found[: shared // size]
        if item.session is not None and self._goes_on is not None:
            self._of_session[item.session] = found
        return tuple(found)

    def _parts(self, item: WorkItem, own: int) -> list[tuple[int, int]]:
        left = item.prompt_tokens
        parts = []
        said = self._said.get(item.session, ()) if item.session is not None and item.history else ()
        history = item.history
        for token, tokens in said:
            if history > 0:
                parts.append((token, min(tokens, history)))
                history -= tokens
        for name, tokens in item.prefix:
            parts.append((2 * self._runs.setdefault(name, len(self._runs)) + 1, tokens))
        left -= sum(tokens for _, tokens in parts)
        if left:
            parts.append((own, left))
        return parts
