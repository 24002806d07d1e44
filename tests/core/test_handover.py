"""One engine computes a prompt, another goes on from it: blocks held after the end, and blocks that come along."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from armillary.core.config import SchedulerConfig
from armillary.core.request import FinishReason, Request
from armillary.twin.replay import replay
from core_model import Client, alone, random_config, random_request

SMALL = SchedulerConfig(num_blocks=12, max_context=40, block_size=4, max_step_tokens=16, max_running=4)


def test_blocks_are_held_until_they_are_released() -> None:
    client = Client(SMALL)
    client.submit(Request("first", tuple([1, 2] * 15), 1, hold=True))
    while client.step():
        pass
    assert client.engine.idle and len(client.scheduler.held.of("first")) == client.scheduler.pool.used_count == 8
    assert client.submit(Request("second", (0,) * 30, 4))
    assert not client.step() and client.scheduler.waiting_count == 1  # there is no room beside what is held
    assert client.refuse(Request("first", (1,), 1)).param == "id"
    client.engine.release("first")
    client.engine.release("first")
    client.finish()


def test_nothing_is_held_of_what_did_not_end_well() -> None:
    client = Client(SMALL)
    client.submit(Request("a", (1, 2, 3), 5, hold=True))
    client.step()
    client.cancel("a", None, FinishReason.CANCELLED)
    assert not client.scheduler.held and client.scheduler.pool.used_count == 0


def test_several_choices_cannot_be_handed_over() -> None:
    client = Client(SMALL)
    for wrong in (Request("a", (1, 2), 3, n=2, hold=True), Request("a", (1, 2), 3, n=2, handed=1)):
        assert "n of 1" in client.refuse(wrong).message
    assert "given n 1 and 3 tokens" in client.refuse(Request("a", (1, 2), 3, handed=3)).message


@pytest.mark.parametrize("seed", range(30))
def test_an_answer_goes_on_in_another_engine_as_it_would_have_in_one(seed: int) -> None:
    """Random requests through two engines, with tiny pools: nothing is computed twice that came along."""
    rnd = random.Random(seed)
    lines: list[str] = []
    front, back = Client(random_config(rnd)), Client(random_config(rnd), journal=lines.append)
    seen: Counter[str] = Counter()
    for number in range(40):
        request = random_request(rnd, f"r{number}", 0.0)
        if request.max_tokens < 2 or request.n > 1:
            continue
        first = Request(request.id, request.prompt, 1, stop_ids=request.stop_ids, identity=request.identity, hold=True)
        if not front.submit(first):
            continue
        while not front.engine.idle and front.step():
            pass
        if front.choices[request.id, 0].finish is None:
            continue  # held blocks leave no room
        assert request.id in front.scheduler.held
        token = front.choices[request.id, 0].tokens[0]
        rest = Request(
            request.id, (*request.prompt, token), request.max_tokens - 1, stop_ids=request.stop_ids,
            min_tokens=max(0, request.min_tokens - 1), identity=request.identity, handed=len(request.prompt),
        )  # fmt: skip
        if back.submit(rest):
            seen["handed"] += 1
            assert alone(request, 0)[0][1:] == alone(rest, 0)[0] or token in request.stop_ids
        for _ in range(rnd.randrange(3)):
            back.step()
        for held in list(front.scheduler.held):
            if rnd.random() < 0.7:
                front.engine.release(held)
                front.scheduler.check()
    while front.scheduler.held or not front.engine.idle:
        front.step()
        for held in list(front.scheduler.held):
            front.engine.release(held)
    front.finish()
    back.finish()
    assert seen["handed"] and back.executor.seen["imports"]
    assert back.scheduler.stats.imported_tokens > 0
    assert replay(lines) == lines
