"""Cores shared in turns: never more threads than there are, in the order of asking, and the same results."""

from __future__ import annotations

import random
import threading
from collections import Counter

import pytest

from armillary.runtime.turns import Turn, Turns


def test_never_more_threads_than_places_and_everyone_gets_a_turn() -> None:
    turns = Turns(4)
    running, most = Counter[int](), []
    lock = threading.Lock()
    done = Counter[int]()

    def engine(number: int, threads: int) -> None:
        turn = Turn(turns, threads)
        for _ in range(200):
            with turn:
                with lock:
                    running[number] = min(threads, 4)
                    most.append(sum(running.values()))
                if random.random() < 0.1:
                    threading.Event().wait(0.0005)
                with lock:
                    del running[number]
            done[number] += 1

    threads = [threading.Thread(target=engine, args=pair) for pair in enumerate((1, 2, 3, 4, 9))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert max(most) <= 4
    assert set(done.values()) == {200}
    assert turns._free == 4


def test_turns_are_given_in_the_order_of_asking() -> None:
    """A small engine does not slip past a large one for ever."""
    turns, order = Turns(2), []
    turns.take(2)
    asked = []
    for number, threads in enumerate((2, 1, 1, 2)):
        before = len(turns._queue)

        def engine(number: int = number, threads: int = threads) -> None:
            turns.take(threads)
            order.append(number)
            turns.give(threads)

        asked.append(threading.Thread(target=engine))
        asked[-1].start()
        while len(turns._queue) == before:
            pass
    turns.give(2)
    for thread in asked:
        thread.join(60)
    assert order[0] == 0 and order[-1] == 3


def test_engines_that_fit_side_by_side_do_not_wait() -> None:
    turns = Turns(2)
    with Turn(turns, 1), Turn(turns, 1):
        assert turns._free == 0
    assert turns._free == 2


def test_a_turn_ends_with_an_error_too() -> None:
    turns, seen = Turns(1), []
    for error in (ValueError, SystemExit):
        with pytest.raises(error), Turn(turns, 1, lambda: seen.append(1)):
            raise error
    assert turns._free == 1 and seen == [1, 1]
