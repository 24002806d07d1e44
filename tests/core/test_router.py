"""Where requests go."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from armillary.core.request import Request
from armillary.core.router import Router
from armillary.core.routing import ROUTES
from armillary.errors import ArmillaryError


def request(name: str, prompt: tuple[int, ...] = (1,) * 32, max_tokens: int = 10, n: int = 1) -> Request:
    return Request(name, prompt, max_tokens, n=n)


def test_round_robin_goes_on_where_it_was_when_replicas_come_and_go() -> None:
    router = Router("round_robin", [1.0] * 3)
    sent = [router.send(request(f"{i}")) for i in range(4)]
    router.close(1)
    sent += [router.send(request(f"a{i}")) for i in range(3)]
    router.open(1)
    assert router.add() == 3
    sent += [router.send(request(f"b{i}")) for i in range(4)]
    assert sent == [0, 1, 2, 0, 2, 0, 2, 3, 0, 1, 2]


def test_the_least_loaded_has_the_fewest_tokens_for_its_speed() -> None:
    router = Router("least_loaded", [1.0, 3.0])
    sent = Counter(router.send(request(f"{i}")) for i in range(80))
    assert sent == {0: 20, 1: 60}
    assert [target.tokens for target in router.targets] == [20 * 32, 60 * 32]


def test_answers_so_far_say_what_the_next_will_be_like() -> None:
    router = Router("least_loaded", [1.0])
    router.send(request("a", n=2))
    assert router.targets[0].tokens == 32  # nothing is known of answers yet
    router.ended("a", 8)
    router.send(request("b", n=2))
    assert router.targets[0].tokens == 32 + 2 * 8
    router.send(request("c", max_tokens=5))
    assert router.targets[0].tokens == 32 + 2 * 8 + 32 + 5  # never more than it may have
    for name in ("b", "c", "c", "never sent"):
        router.ended(name, 0)
    assert (router.targets[0].requests, router.targets[0].tokens) == (0, 0)


def test_two_choices_are_much_more_even_than_one_and_are_drawn_alike_from_one_seed() -> None:
    def most(route: str, seed: int) -> tuple[int, list[int | None]]:
        router = Router(route, [1.0] * 50, seed=seed)
        sent = [router.send(request(f"{i}")) for i in range(1000)]
        return max(target.requests for target in router.targets), sent

    assert most("power_of_two", 1) == most("power_of_two", 1)
    assert most("power_of_two", 1)[1] != most("power_of_two", 2)[1]
    rnd = random.Random(0)
    one = max(Counter(rnd.randrange(50) for _ in range(1000)).values())
    assert most("least_loaded", 0)[0] == 20
    assert most("power_of_two", 1)[0] <= 23 < one


def test_a_prefix_draws_its_like_until_the_replica_is_busy() -> None:
    router = Router("prefix_aware", [1.0] * 4)
    first = tuple(range(160))
    home = router.send(request("0", first))
    assert router.send(request("1", (*first[:64], *range(500, 600)))) != home  # 64 tokens are not worth a queue of 160
    router.ended("0", 4)
    router.ended("1", 4)
    assert router.send(request("2", (*first, 7, 8))) == home
    assert router.send(request("3", (*first[:-1], 999))) != home  # now it is busy
    lost = router.lose(home or 0)
    assert lost == ["2"]
    router.open(home or 0)
    router.ended("3", 4)
    other = router.send(request("4", first))
    assert other != home  # what had been cached there is gone


def test_what_was_sent_long_ago_is_not_taken_for_cached() -> None:
    router = Router("prefix_aware", [1.0, 1.0], memory=8)
    old = tuple(range(65))
    assert router.send(request("0", old)) == 0
    router.ended("0", 0)
    for i in range(4):
        assert router.send(request(f"x{i}", (1000 + i, *range(64)))) is not None
        router.ended(f"x{i}", 0)
    assert router.send(request("blocker", (5,) * 4)) == 0
    assert router.send(request("again", old)) == 1


def test_a_session_stays_where_it_is_while_that_is_up() -> None:
    router = Router("session_sticky", [1.0] * 3)
    homes = {name: router.send(request(name), session=name) for name in "abc"}
    assert sorted(homes.values(), key=str) == [0, 1, 2]
    for turn in range(5):
        assert {name: router.send(request(f"{name}{turn}"), session=name) for name in "abc"} == homes
    router.close(homes["a"] or 0)
    moved = router.send(request("a9"), session="a")
    assert moved != homes["a"]
    router.open(homes["a"] or 0)
    assert router.send(request("a10"), session="a") == moved


@pytest.mark.parametrize("route", ROUTES)
def test_nobody_is_sent_to_who_is_down_and_the_books_are_even(route: str) -> None:
    rnd = random.Random(5)
    router = Router(route, [1.0, 2.0, 0.5, 1.0], seed=3)
    alive: dict[str, int] = {}
    down: set[int] = set()
    for number in range(400):
        draw = rnd.random()
        if draw < 0.6:
            prompt = tuple(rnd.randrange(3) for _ in range(rnd.randrange(1, 60)))
            sent = router.send(request(f"{number}", prompt), session=f"{number % 7}")
            if sent is None:
                assert len(down) == 4
            else:
                assert sent not in down
                alive[f"{number}"] = sent
        elif draw < 0.85 and alive:
            name = rnd.choice(sorted(alive))
            del alive[name]
            router.ended(name, rnd.randrange(10))
        elif draw < 0.92:
            index = rnd.randrange(4)
            lost = router.lose(index) if rnd.random() < 0.5 else router.close(index) or []
            assert not lost or set(lost) == {name for name, where in alive.items() if where == index}
            alive = {name: where for name, where in alive.items() if name not in lost}
            down.add(index)
        elif down:
            index = rnd.choice(sorted(down))
            router.open(index)
            down.discard(index)
        for target in router.targets:
            assert target.requests == sum(where == target.index for where in alive.values())
    for name in alive:
        router.ended(name, 0)
    assert [target.tokens for target in router.targets] == [0] * 4


def test_an_unknown_route_is_refused_with_those_there_are() -> None:
    with pytest.raises(ArmillaryError, match=r"one of round_robin, .*given 'fastest'"):
        Router("fastest")
    with pytest.raises(ValueError, match="above 0, given 0"):
        Router("round_robin", [0.0])
