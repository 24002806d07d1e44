"""Rows that carry more than one token: fewer steps, and otherwise the same life."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from armillary.core.config import SchedulerConfig
from armillary.core.request import FinishReason, Request
from armillary.core.step import Step, StepResult
from armillary.twin.replay import replay
from core_model import FAULTS, CheckedExecutor, Client, next_token, random_config, random_request, states


class RunningAhead:
    """Lets two of three tokens be followed by the next one, which it knows."""

    def __init__(self, inside: CheckedExecutor) -> None:
        self.inside = inside
        self.longest = 0

    def run(self, step: Step) -> StepResult:
        result = self.inside.run(step)
        if not isinstance(result, StepResult):
            return result
        row = 0
        result.more = {}
        for entry in step.entries:
            sequence = entry.sequence
            for choice in range(sequence.index, sequence.index + entry.rows):
                tokens = [*sequence.tokens, *result.tokens[row : row + 1]]
                following: list[tuple[int, object]] = []
                while hash(((chain := states(sequence.request, tokens))[-1], 7)) % 3:
                    tokens.append(next_token(chain[-1], choice))
                    following.append((tokens[-1], None))
                result.more[row] = following
                self.longest = max(self.longest, len(following))
                row += 1
        return result


def ahead(client: Client) -> RunningAhead:
    """Put the runs around the executor of a client."""
    runs = RunningAhead(client.executor)
    client.engine.executor = runs
    return runs


def life(seed: int, lines: list[str], runs: bool = True) -> Client:
    """Arrivals, cancellations and failures, on a small machine."""
    rnd = random.Random(seed)
    fault_rnd = random.Random(-seed)
    client = Client(
        random_config(rnd),
        lambda step: fault_rnd.choice([f for f in FAULTS if f != "types"]) if fault_rnd.random() < 0.03 else None,
        journal=lines.append,
    )
    if runs:
        ahead(client)
    for number in range(60):
        if number < 40 and rnd.random() < 0.5:
            client.submit(random_request(rnd, f"r{number}", client.clock.now()))
        if rnd.random() < 0.1:
            client.cancel(f"r{rnd.randrange(number + 1)}", rnd.choice([None, 0, 1]), FinishReason.CANCELLED)
        client.step()
    client.finish()  # compares every token with what the request generates alone
    return client


def test_the_same_tokens_come_in_fewer_steps() -> None:
    met: Counter[str] = Counter()
    for seed in range(40):
        client = life(seed, [])
        stats = client.scheduler.stats
        met["forced"] += stats.forced_tokens
        met["generated"] += stats.generated_tokens
        met["preemptions"] += stats.preemptions
        met["copies"] += stats.copies
        met["hits"] += stats.prefix_hit_tokens
        met["chunks"] += client.executor.seen["chunks"]
        met["stopped"] += stats.finished[FinishReason.STOP]
        met["long"] += stats.finished[FinishReason.LENGTH]
    assert met["forced"] > met["generated"] / 3
    for what in ("preemptions", "copies", "hits", "chunks", "stopped", "long"):
        assert met[what] > 30, met


def test_a_journal_with_runs_replays_byte_for_byte() -> None:
    for seed in range(25):
        lines: list[str] = []
        client = life(seed, lines)
        assert replay(lines) == lines
        assert client.scheduler.stats.forced_tokens or seed


def test_a_run_ends_with_the_token_that_ends_the_sequence() -> None:
    """At the limit, and at a stop token; what the executor said beyond is dropped, and every event comes once."""

    class Script:
        def run(self, step: Step) -> StepResult:
            return StepResult([5], more={0: [(6, "six"), (7, None), (8, None), (9, None)]})

    for limit, stops, wanted, finish in (
        (3, frozenset[int](), [5, 6, 7], FinishReason.LENGTH),
        (9, frozenset({8}), [5, 6, 7, 8], FinishReason.STOP),
        (9, frozenset({5}), [5], FinishReason.STOP),
        (5, frozenset[int](), [5, 6, 7, 8, 9], FinishReason.LENGTH),
    ):
        client = Client(SchedulerConfig(num_blocks=8, max_context=32, block_size=4))
        seen: list[tuple[int | None, object, FinishReason | None]] = []
        client.engine.executor = Script()
        client.engine.sink = lambda events, seen=seen: seen.extend((e.token, e.detail, e.finish) for e in events)
        client.engine.submit(Request("a", (1, 2), limit, stop_ids=stops))
        client.engine.step()
        assert [token for token, _, _ in seen] == wanted
        assert [f for _, _, f in seen] == [None] * (len(wanted) - 1) + [finish]
        assert client.engine.idle and client.scheduler.pool.used_count == 0
        assert client.scheduler.stats.generated_tokens == len(wanted)
        assert client.scheduler.stats.forced_tokens == len(wanted) - 1
        assert len(wanted) < 2 or seen[1][1] == "six"


def test_min_tokens_counts_the_tokens_of_a_run() -> None:
    client = Client(SchedulerConfig(num_blocks=8, max_context=32, block_size=4))

    class Script:
        def run(self, step: Step) -> StepResult:
            return StepResult([2], more={0: [(2, None), (2, None)]})

    client.engine.executor = Script()
    client.submit(Request("a", (1,), 9, min_tokens=3, stop_ids=frozenset({2})))
    client.step()
    assert client.choices["a", 0].tokens == [2, 2, 2] and client.choices["a", 0].finish is FinishReason.STOP


@pytest.mark.parametrize(
    "more", [{1: [(1, None)]}, {-1: []}, {0: [(-1, None)]}, {0: [(True, None)]}, {0: [(1.5, None)]}]
)
def test_a_run_that_cannot_be_fails_the_step_and_nothing_else(more: dict[int, list[tuple[int, object]]]) -> None:
    client = Client(SchedulerConfig(num_blocks=8, max_context=32, block_size=4))
    good = client.executor

    class Spoilt:
        def run(self, step: Step) -> StepResult:
            result = good.run(step)
            result.more = more
            return result

    client.engine.executor = Spoilt()
    client.submit(Request("a", (1, 0), 4))
    client.step()
    assert client.choices["a", 0].finish is FinishReason.ERROR
    client.engine.executor = good
    client.submit(Request("b", (1, 0), 4))
    client.finish()


def test_blocks_of_a_run_are_found_again() -> None:
    """The prefix index knows the tokens of a run like any others."""
    client = Client(SchedulerConfig(num_blocks=32, max_context=64, block_size=4))
    runs = ahead(client)
    first = Request("a", (1, 0, 1), 24)
    client.submit(first)
    client.finish()
    assert runs.longest > 2 and client.scheduler.stats.forced_tokens > 4
    told = client.choices["a", 0].tokens
    client.submit(Request("b", (*first.prompt, *told), 2))
    client.finish()
    assert client.scheduler.stats.prefix_hit_tokens >= 24
