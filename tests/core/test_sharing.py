"""What one sequence computes in a step, others take in that step: nothing twice, nobody later, only what is there."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace

import pytest

from armillary.core.config import SchedulerConfig
from armillary.core.prefix import Link
from armillary.core.request import FinishReason, Request, Sequence
from armillary.core.scheduler import Scheduler
from armillary.core.sharing import Sharing
from armillary.core.step import Entry, Step, StepResult
from armillary.twin.replay import replay
from core_model import FAULTS, Client, Violation, random_config, random_request

WIDE = SchedulerConfig(num_blocks=256, max_context=128, block_size=4, max_step_tokens=512, max_running=32)
PREFIX = tuple(number % 3 for number in range(40))


def request(
    number: int, own: int = 5, max_tokens: int = 3, prefix: tuple[int, ...] = PREFIX, **more: object
) -> Request:
    """A prompt that begins as others do; its own part is another one for every number."""
    tail = (number % 3, number // 3 % 3, number // 9 % 3, *[2] * own)[:own]
    return Request(f"r{number}", (*prefix, *tail), max_tokens, **more)  # type: ignore[arg-type]


class Alone(Sharing):
    """Without: blocks are found once they have been computed, and only by newcomers."""

    def announce(self, step: Step, entry: Entry) -> None:
        pass

    def advance(self, step: Step, tokens: int) -> int:
        return tokens


def scheduler_of(sharing: type[Sharing]) -> type[Scheduler]:
    class Changed(Scheduler):
        def __init__(self, config: SchedulerConfig) -> None:
            super().__init__(config)
            self.sharing = sharing(config, self.index, self.pool, self.stats)

    return Changed


def computed(client: Client) -> int:
    """Tokens of prompts that were computed: all but the last of an answer are, once more."""
    answers = sum(len(choice.tokens) - 1 for choice in client.choices.values() if choice.tokens)
    return client.scheduler.stats.computed_tokens - answers


# ------------------------------------------------------------------ what is saved


def test_a_prefix_that_comes_many_times_at_once_is_computed_once() -> None:
    client = Client(WIDE)
    for number in range(20):
        client.submit(request(number))
    client.step()
    assert [len(choice.tokens) for choice in client.choices.values()] == [1] * 20, "in one step"
    client.finish()
    assert computed(client) == 40 + 20 * 5
    assert client.scheduler.stats.prefix_hit_tokens == 19 * 40


@pytest.mark.parametrize("chunk", [4, 8, 12, 20])
def test_sequences_in_chunks_go_ahead_of_each_other(chunk: int) -> None:
    """Each begins where the one before ends, and goes on in the next step where all of them end."""
    client = Client(replace(WIDE, max_chunk_tokens=chunk))
    for number in range(12):
        client.submit(request(number, own=4))
    client.step()
    assert client.scheduler.running[0].computed == chunk
    assert client.scheduler.running[1].computed == 2 * chunk
    client.step()
    assert all(choice.tokens for choice in client.choices.values())
    client.finish()
    assert computed(client) == 40 + 12 * 4
    assert client.executor.seen["gone ahead"] >= 1


def test_chunks_that_end_within_a_block_cost_no_more_than_that_block() -> None:
    client = Client(replace(WIDE, max_chunk_tokens=7))
    for number in range(12):
        client.submit(request(number, own=4))
    client.finish()
    assert 40 + 12 * 4 < computed(client) <= 40 + 12 * 4 + 9 * 3


def test_who_comes_while_a_prompt_is_computed_takes_what_there_is_and_helps() -> None:
    client = Client(replace(WIDE, max_step_tokens=40, max_chunk_tokens=8))
    client.submit(request(0))
    client.step()
    client.submit(request(1))
    client.step()
    first, second = client.scheduler.running
    assert (first.computed, second.computed, second.cached) == (16, 24, 16)
    client.step()
    assert (first.computed, second.computed) == (32, 40)
    client.finish()
    assert computed(client) == 40 + 2 * 5


def test_what_a_prefix_saves_of_the_budget_is_used_in_the_same_step() -> None:
    client = Client(replace(WIDE, max_step_tokens=50, max_running=8))
    for number in range(6):
        client.submit(request(number))
    client.step()
    assert [s.computed for s in client.scheduler.running] == [45, 45]
    client.step()
    assert client.scheduler.running_count == 6
    client.finish()


def test_a_running_sequence_gives_the_blocks_back_that_it_does_not_fill_itself() -> None:
    client = Client(replace(WIDE, max_chunk_tokens=8))
    for number in range(4):
        client.submit(request(number))
    client.step()
    assert client.scheduler.pool.used_count == 4 * 12 - 3 * 2 - 2 * 2 - 2
    client.step()
    assert client.scheduler.pool.used_count == 10 + 4 * 2, "the prefix, and of each one the rest"
    client.finish()


# ------------------------------------------------------------------ who shares, and who does not


def test_only_equal_prompts_under_one_identity_share() -> None:
    client = Client(WIDE)
    for number, identity in enumerate(["", "adapter", "", "adapter", "other"]):
        client.submit(request(number, identity=identity))
    client.finish()
    assert computed(client) == 3 * 40 + 5 * 5


def test_who_must_compute_everything_gives_and_does_not_take() -> None:
    client = Client(WIDE)
    client.submit(request(0, reuse_prefix=False))
    client.submit(request(1, reuse_prefix=False))
    client.submit(request(2))
    client.finish()
    assert computed(client) == 45 + 45 + 5


def test_copies_of_a_request_share_as_one() -> None:
    client = Client(WIDE)
    for number in range(3):
        client.submit(request(number, n=4))
    client.step()
    assert client.scheduler.running_count == 12
    assert client.scheduler.stats.computed_tokens == 40 + 3 * 5
    client.finish()


def test_without_the_cache_nothing_is_shared() -> None:
    client = Client(replace(WIDE, prefix_cache=False))
    for number in range(4):
        client.submit(request(number))
    client.finish()
    assert computed(client) == 4 * 45 and client.scheduler.stats.prefix_hit_tokens == 0


# ------------------------------------------------------------------ who computes does not get that far


def test_who_took_from_an_entry_that_fails_computes_anew() -> None:
    client = Client(WIDE, lambda step: "entries" if step.index == 0 else None)
    for number in range(6):
        client.submit(request(number))
    client.step()
    assert [choice.finish for choice in client.choices.values()] == ["error", None] * 3
    assert not client.scheduler.running_count, "all had taken from the first"
    assert not any(choice.tokens for choice in client.choices.values())
    client.finish()
    assert [choice.finish for choice in client.choices.values()] == ["error", "length"] * 3
    assert computed(client) == 40 + 6 * 5 + 40 + 3 * 5


def test_what_was_computed_before_the_failure_stays() -> None:
    client = Client(replace(WIDE, max_chunk_tokens=8), lambda step: "entries" if step.index == 1 else None)
    client.submit(request(0))
    client.step()
    client.submit(request(1))
    client.finish()
    assert [choice.finish for choice in client.choices.values()] == ["error", "length"]
    assert client.scheduler.stats.prefix_hit_tokens == 16 + 8, "of the second step nothing, of the first its block"


def test_a_step_that_fails_leaves_nothing_to_be_found() -> None:
    client = Client(WIDE, lambda step: "raise" if step.index == 0 else None)
    client.submit(request(0))
    client.submit(request(1))
    client.step()
    assert len(client.scheduler.index) == 0 and client.engine.idle
    client.submit(request(2))
    client.finish()
    assert client.scheduler.stats.prefix_hit_tokens == 40, "what the second found in the step that failed"


@pytest.mark.parametrize("broken", [False, True])
def test_an_interrupted_step_is_computed_anew(broken: bool) -> None:
    """The engine may go on afterwards, with others; nothing of the step can be found."""
    client = Client(WIDE)
    if broken:
        client.scheduler.abandon = lambda step, now: None  # type: ignore[method-assign]
    for number in range(3):
        client.submit(request(number))
    run = client.executor.run

    def interrupted(step: Step) -> StepResult:
        client.executor.run = run  # type: ignore[method-assign]
        raise KeyboardInterrupt

    client.executor.run = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        client.engine.step()
    client.cancel("r0", None, FinishReason.CANCELLED)
    client.submit(request(3))
    if broken:
        with pytest.raises(Violation):
            client.finish()
        return
    client.finish()
    assert [choice.finish for choice in client.choices.values()] == ["cancelled", *["length"] * 3]


def test_who_computes_is_cancelled_while_the_step_runs() -> None:
    """As a driver other than `Engine` may: what the step computes is there all the same."""
    client = Client(WIDE)
    for number in range(3):
        client.submit(request(number))
    step = client.scheduler.next_step(0.0)
    assert step is not None
    result = client.executor.run(step)
    client.cancel("r0", None, FinishReason.CANCELLED)
    client._hear(client.scheduler.commit(step, result, 0.01, 0.0))
    client.finish()
    assert computed(client) == 40 + 3 * 5


def test_who_computes_runs_out_of_time_in_that_step() -> None:
    lines: list[str] = []
    client = Client(WIDE, journal=lines.append)
    client.submit(request(0, expires=0.001))
    client.submit(request(1))
    client.step()
    assert client.choices["r0", 0].finish is FinishReason.DEADLINE and client.choices["r1", 0].tokens
    client.finish()
    assert replay(lines) == lines


def test_who_computes_fails_and_runs_out_of_time_in_that_step() -> None:
    """The failure comes first, since others depend on it and the journal must know."""
    lines: list[str] = []
    client = Client(WIDE, lambda step: "entries" if step.index == 0 else None, journal=lines.append)
    client.submit(request(0, expires=0.001))
    client.submit(request(1))
    client.step()
    assert client.choices["r0", 0].finish is FinishReason.ERROR and not client.choices["r1", 0].tokens
    client.finish()
    assert replay(lines) == lines and '"preempted":[["r1",0]]' in "".join(lines)


def test_who_computes_is_preempted_afterwards() -> None:
    """What it has computed by then is there; the rest is computed by those who are next."""
    client = Client(replace(WIDE, max_chunk_tokens=8, max_running=8))
    for number in range(2):
        client.submit(request(number))
    client.step()
    client.scheduler._preempt(client.scheduler.running[0], Step(0, []), 0.0)
    client.finish()
    assert computed(client) == 40 + 2 * 5


# ------------------------------------------------------------------ whatever happens


def alike(rnd: random.Random, name: str, now: float, family: int) -> Request:
    """A request whose prompt begins as those of its family do."""
    prefix = random.Random(family).choices(range(2), k=24)[: rnd.randint(8, 24)]
    prompt = (*prefix, *rnd.choices(range(3), k=rnd.randint(1, 4)))
    return replace(random_request(rnd, name, now), prompt=prompt, max_tokens=rnd.randint(1, 8))


def lives(seed: int, scheduler: type[Scheduler]) -> Client:
    """Many prompts that begin alike, in bursts, on a small machine. Ends only if every request does, and compares what
    each was told with what it generates alone."""
    rnd, fault_rnd = random.Random(seed), random.Random(-seed)
    kinds = [*FAULTS, *["entries"] * 2 * len(FAULTS)]
    config = replace(random_config(rnd), prefix_cache=True, preempt_every=rnd.choice([0, 0, 0, 2, 5]))
    config = replace(config, block_size=rnd.choice([2, 4, 4, 8]), num_blocks=rnd.randint(20, 40))
    lines: list[str] = []
    client = Client(
        config,
        lambda step: fault_rnd.choice(kinds) if fault_rnd.random() < 0.15 else None,
        scheduler,
        lines.append,
    )
    for number in range(50):
        if rnd.random() < 0.25:
            now, family = client.clock.now(), rnd.randrange(30)
            for copy in range(rnd.randint(1, 6)):
                expires = now + rnd.random() * 0.1 if rnd.random() < 0.1 else None
                client.submit(replace(alike(rnd, f"r{number}-{copy}", now, family), expires=expires))
        if rnd.random() < 0.15:
            name = f"r{rnd.randrange(number + 1)}-{rnd.randrange(3)}"
            client.cancel(name, rnd.choice([None, 0, 1]), FinishReason.CANCELLED)
        client.step()
    client.finish()
    assert scheduler is not Watched or replay(lines) == lines
    return client


class Watched(Scheduler):
    anew = 0

    def _compute_anew(self, step: Step, lost: set[Link], now: float) -> None:
        before = self.stats.preemptions
        super()._compute_anew(step, lost, now)
        self.anew += self.stats.preemptions - before


def test_random_lives() -> None:
    met: Counter[str] = Counter()
    for seed in range(60):
        client = lives(seed, Watched)
        met += client.executor.seen
        met["computed anew"] += client.scheduler.anew  # type: ignore[attr-defined]
        met["preempted"] += client.scheduler.stats.preemptions
    for path in ("taken within a step", "gone ahead", "computed anew", "preempted", *FAULTS):
        assert met[path] >= 10, f"the rare path {path!r} was hardly taken: {met}"


@pytest.mark.slow
def test_many_random_lives() -> None:
    for seed in range(1000, 3000):
        lives(seed, Scheduler)


def progress(client: Client) -> dict[tuple[str, int], tuple[int, int]]:
    """Of each choice that is alive, the tokens that it has and the positions computed for them."""
    return {
        (name, index): (s.generated, s.computed)
        for name, alive in client.scheduler._alive.items()
        for s in alive
        for index in s.choices
    }


def both(seed: int) -> bool:
    """Live the same life with sharing and without, to the first step in which they differ; whether there is one.

    In that step, whoever is further is so with sharing.
    """
    rnd = random.Random(seed)
    config = replace(random_config(rnd), prefix_cache=True, preempt_every=0, max_waiting=100)
    lines: tuple[list[str], list[str]] = ([], [])
    shared, apart = (
        Client(config, None, scheduler, written.append)
        for scheduler, written in zip((Scheduler, scheduler_of(Alone)), lines, strict=True)
    )
    for number in range(60):
        family = rnd.randrange(9)
        for copy in range(rnd.choice([0, 0, 1, 4])):
            request = alike(rnd, f"r{number}-{copy}", 0.0, family)
            shared.submit(request)
            apart.submit(request)
        shared.step()
        apart.step()
        if lines[0] != lines[1]:
            found = progress(shared)
            for key, there in progress(apart).items():
                assert key not in found or found[key] >= there, (key, found[key], there)
            return True
    return False


def test_nobody_is_later_for_it() -> None:
    assert sum(both(seed) for seed in range(80)) > 40


@pytest.mark.slow
def test_nobody_is_later_in_many_lives() -> None:
    assert sum(both(seed) for seed in range(1000, 3000)) > 1000


# ------------------------------------------------------------------ sharing that is wrong, and is caught


class NeverTakesBack(Sharing):
    def withdraw(self, step: Step, failed: Collection[Entry]) -> set[Link]:
        return set()


class AnnouncesTooMuch(Sharing):
    """Announces all of a prompt, not only what the step computes of it."""

    def announce(self, step: Step, entry: Entry) -> None:
        count = (len(entry.sequence.tokens) - 1) // self._config.block_size
        if count > len(entry.sequence.chain):
            self.index_filled(entry.sequence, count)


class ForgetsTheIdentity(Sharing):
    def index_filled(self, sequence: Sequence, count: int) -> None:
        self._index.extend_chain(sequence.chain, count, sequence.blocks, sequence.tokens, [], "")


class TakesWithoutHolding(Sharing):
    def _take(self, sequence: Sequence) -> None:
        before = list(sequence.blocks)
        super()._take(sequence)
        for block in set(sequence.blocks) - set(before):
            self._pool.release((block,), self._index.indexed)


def _nobody_computes_anew(self: Scheduler, step: Step, lost: set[Link], now: float) -> None:
    pass


@pytest.mark.parametrize(
    "broken",
    [NeverTakesBack, AnnouncesTooMuch, ForgetsTheIdentity, TakesWithoutHolding, _nobody_computes_anew],
)
def test_sharing_that_is_wrong_is_caught(broken: type[Sharing] | Callable[..., None]) -> None:
    if isinstance(broken, type):
        scheduler = scheduler_of(broken)
    else:
        scheduler = type("Broken", (Scheduler,), {"_compute_anew": broken})
    caught = 0
    for seed in range(60):
        try:
            lives(seed, scheduler)
        except (Violation, AssertionError, RuntimeError, ValueError, KeyError, IndexError):
            caught += 1
        if caught == 3:
            return
    raise AssertionError(f"caught in {caught} lives only")
