"""The waiting queue against a list that is sorted anew every time."""

from __future__ import annotations

import random
from bisect import bisect_right
from math import inf

import pytest

from armillary.core.order import ORDERS, Key, Pace
from armillary.core.queue import WaitingQueue
from armillary.core.request import Request, Sequence


def sequence(uid: int, now: float = 0.0, **more: object) -> Sequence:
    return Sequence(Request(f"r{uid}", (1,), 4, **more), 0, uid, now)  # type: ignore[arg-type]


class Timetable:
    """An ordering whose keys change at random moments, also back to what they were."""

    def __init__(self, starvation_s: float = 1.0, pace: Pace | None = None) -> None:
        rnd = random.Random(0)
        self._moments = [sorted(rnd.random() * 100 for _ in range(6)) for _ in range(97)]
        self._keys = [[float(rnd.randrange(4)) for _ in range(3)] for _ in range(97)]

    def key(self, s: Sequence, now: float) -> Key:
        return (self._keys[s.uid % 97][bisect_right(self._moments[s.uid % 97], now) % 3],)

    def changes_at(self, s: Sequence, now: float) -> float:
        return min((t for t in self._moments[s.uid % 97] if t > now), default=inf)


@pytest.mark.parametrize("seed", range(20))
def test_the_head_is_the_smallest_key(seed: int) -> None:
    rnd = random.Random(seed)
    order = Timetable()
    queue = WaitingQueue(order)
    waiting: dict[int, Sequence] = {}
    left: list[Sequence] = []
    now, serial, stale = 0.0, 0, 0
    for _ in range(600):
        move = rnd.random()
        if move < 0.35:
            serial += 1
            waiting[serial] = sequence(serial)
            queue.push(waiting[serial], now)
        elif move < 0.45 and left:  # preempted: enters again
            again = left.pop(rnd.randrange(len(left)))
            waiting[again.uid] = again
            queue.push(again, now)
        elif move < 0.6 and waiting:  # cancelled: leaves from anywhere
            gone = waiting.pop(rnd.choice(list(waiting)))
            assert queue.remove(gone)
            assert not queue.remove(gone)
            left.append(gone)
        elif move < 0.8:
            head = queue.peek()
            if head is not None:
                assert queue.remove(waiting.pop(head.uid))
                left.append(head)
        else:
            now += rnd.random()
        queue.refresh(now)
        head = queue.peek()
        expected = min(waiting.values(), key=lambda s: (order.key(s, now), s.uid), default=None)
        assert head is expected
        assert len(queue) == len(waiting)
        assert all(s in queue for s in waiting.values()) and all(s not in queue for s in left)
        stale += len(queue._heap) > len(waiting)
    assert stale > 50, "stale entries never piled up"


@pytest.mark.parametrize("order", ORDERS)
def test_memory_is_bounded_over_a_million_moves(order: str) -> None:
    queue = WaitingQueue(ORDERS[order](1e9, Pace()))
    stay = [sequence(i, deadline=1e6, priority=i % 5) for i in range(20)]
    for s in stay:
        queue.push(s, 0.0)
    restless = [sequence(100 + i, deadline=1e6, priority=i % 5) for i in range(10)]
    for i in range(334_000 // 2):
        s = restless[i % 10]
        queue.push(s, 0.0)
        if i % 3:
            queue.remove(s)
        assert len(queue._heap) + len(queue._changes) <= 130 + 4 * 30
    assert 20 <= len(queue) <= 30


def test_a_thousand_who_leave_take_their_entries_along() -> None:
    queue = WaitingQueue(ORDERS["priority"](30.0, Pace()))
    sequences = [sequence(i) for i in range(5000)]
    for s in sequences:
        queue.push(s, 0.0)
    for s in sequences:
        queue.remove(s)
    assert len(queue._heap) + len(queue._changes) <= 128
    assert queue.peek() is None


def test_one_who_enters_again_and_again_is_listed_once() -> None:
    """Preempted and admitted many times before its key changes: nothing may pile up."""
    queue = WaitingQueue(ORDERS["priority"](30.0, Pace()))
    s = sequence(1)
    for _ in range(10_000):
        queue.push(s, 0.0)
    assert len(queue) == 1
    assert len(queue._heap) + len(queue._changes) <= 132
    queue.refresh(31.0)
    assert queue.peek() is s
    assert queue.remove(s) and queue.peek() is None


def test_an_ordering_that_claims_a_change_in_the_past_cannot_hang_the_queue() -> None:
    class Restless(Timetable):
        def changes_at(self, s: Sequence, now: float) -> float:
            return now

    queue = WaitingQueue(Restless())
    queue.push(sequence(1), 5.0)
    queue.refresh(5.0)
    queue.refresh(6.0)
    assert len(queue) == 1
