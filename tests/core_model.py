"""A model small enough to check by hand, and an executor that trusts nothing.

The "keys and values" of a position are a hash of everything up to it, so that a block which holds another
sequence's content, stale content or nothing at all is noticed at the first position that attends to it.
The next token is a hash of the whole prefix, so that one wrong position changes all that follows.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from zlib import crc32

from armillary.core.clock import VirtualClock
from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.journal import Journal
from armillary.core.request import FinishReason, Request, Sequence
from armillary.core.scheduler import Scheduler
from armillary.core.step import Entry, Event, Step, StepResult
from armillary.errors import ArmillaryError

VOCABULARY = 3
Fault = Callable[[Step], str | None]
"""Says how a step is to fail, if at all: one of `FAULTS`."""
FAULTS = ("raise", "entries", "rows", "details", "types", "negative", "nothing", "backwards")


def states(request: Request, tokens: list[int], known: list[int] | None = None) -> list[int]:
    """The content that each position must have. Hashes of tuples of integers are equal in every process."""
    chain = known or []
    for token in tokens[len(chain) :]:
        previous = chain[-1] if chain else crc32(request.identity.encode())
        chain.append(hash((previous, token)))
    return chain


def next_token(state: int, choice: int) -> int:
    return hash((state, choice)) % VOCABULARY


def alone(request: Request, choice: int) -> tuple[list[int], FinishReason]:
    """What a choice generates when nothing else exists."""
    tokens = list(request.prompt)
    if request.max_tokens == 0:
        return [], FinishReason.STOP
    chain = states(request, tokens)
    while True:
        token = next_token(chain[-1], choice)
        tokens.append(token)
        states(request, tokens, chain)
        generated = len(tokens) - len(request.prompt)
        if token in request.stop_ids and generated >= request.min_tokens:
            return tokens[len(request.prompt) :], FinishReason.STOP
        if generated == request.max_tokens:
            return tokens[len(request.prompt) :], FinishReason.LENGTH


class Violation(BaseException):
    """A promise of the core was broken. Not an `Exception`: the engine forgives its executor those."""


class CheckedExecutor:
    """Runs steps on the small model and verifies every promise that a step makes to an executor."""

    def __init__(self, config: SchedulerConfig, clock: VirtualClock | None = None, fault: Fault | None = None) -> None:
        self.config = config
        self.clock = clock
        self.fault = fault
        self.seen: Counter[str] = Counter()
        self._kv: list[list[int | None]] = [[None] * config.block_size for _ in range(config.num_blocks)]
        self._chains: dict[int, tuple[list[int], list[int]]] = {}
        self._ends: dict[int, int] = {}
        self._ended: set[int] = set()

    def run(self, step: Step) -> StepResult:
        try:
            result = self._compute(step)
        except Exception as error:
            raise Violation(f"{type(error).__name__}: {error}") from error
        fault = self.fault(step) if self.fault else None
        return self._spoil(step, result, fault) if fault else result

    def _compute(self, step: Step) -> StepResult:
        self._check(step)
        size = self.config.block_size
        for source, target in step.copies:
            assert source != target
            self._kv[target] = list(self._kv[source])
        for sequence, first, end in step.imports:
            chain = self._chain(sequence)
            for position in range(first, end):
                self._kv[sequence.blocks[position // size]][position % size] = chain[position]
        written: dict[tuple[int, int], int] = {}
        for entry in step.entries:
            chain = self._chain(entry.sequence)
            for position in range(entry.start, entry.start + entry.count):
                slot = (entry.sequence.blocks[position // size], position % size)
                assert slot not in written, f"{entry.sequence} writes where another sequence writes: {slot}"
                written[slot] = entry.sequence.uid
                self._kv[slot[0]][slot[1]] = chain[position]
        tokens = []
        pooled: dict[str, object] = {}
        for entry in step.entries:
            chain = self._chain(entry.sequence)
            for position in range(entry.start + entry.count):
                slot = (entry.sequence.blocks[position // size], position % size)
                found = self._kv[slot[0]][slot[1]]
                assert found == chain[position], f"{entry.sequence} attends to foreign content at {position}"
                self.seen["taken within a step"] += written.get(slot, entry.sequence.uid) != entry.sequence.uid
            for row in range(entry.rows):
                tokens.append(next_token(chain[-1], entry.sequence.index + row))
            if not entry.sequence.request.max_tokens and entry.start + entry.count == len(chain):
                pooled[entry.sequence.request.id] = chain[-1]
            moved = entry.sequence not in step.admitted and entry.start - self._ends.get(
                entry.sequence.uid, entry.start
            )
            self.seen["gone ahead"] += moved > 0
            self._ends[entry.sequence.uid] = entry.start + entry.count
        self.seen["steps"] += 1
        self.seen["copies"] += len(step.copies)
        self.seen["imports"] += len(step.imports)
        self.seen["chunks"] += sum(entry.rows == 0 for entry in step.entries)
        self.seen["forks"] += sum(entry.rows > 1 for entry in step.entries)
        self.seen["pooled"] += len(pooled)
        return StepResult(tokens, prompt_details=pooled or None, duration=0.002 + 0.0005 * step.tokens)

    def _check(self, step: Step) -> None:
        config = self.config
        assert step.entries
        assert step.tokens == sum(entry.count for entry in step.entries) <= config.max_step_tokens
        uids = [entry.sequence.uid for entry in step.entries]
        assert len(set(uids)) == len(uids), "a sequence appears twice in a step"
        assert not self._ended.intersection(step.ended), "a sequence ended twice"
        self._ended.update(step.ended)
        assert not self._ended.intersection(uids), "a sequence runs after its end"
        assert sum(1 + entry.sequence.forks for entry in step.entries) <= config.max_running
        for entry in step.entries:
            sequence, end = entry.sequence, entry.start + entry.count
            assert entry.count >= 1 and entry.start == sequence.computed and end <= len(sequence.tokens)
            assert entry.count <= (config.max_chunk_tokens or config.max_step_tokens)
            rows = 1 + sequence.forks if sequence.request.max_tokens else 0
            assert entry.rows == (rows if end == len(sequence.tokens) else 0)
            assert not config.whole_prompts or end == len(sequence.tokens)
            assert len(sequence.blocks) * config.block_size >= end
            assert len(set(sequence.blocks)) == len(sequence.blocks)
        assert not {s.uid for s in step.preempted} & (set(uids) - {s.uid for s in step.admitted})

    def _chain(self, sequence: Sequence) -> list[int]:
        """The content that the sequence must find; also verifies that what it knew it still knows."""
        tokens, chain = self._chains.setdefault(sequence.uid, ([], []))
        assert sequence.tokens[: len(tokens)] == tokens, f"{sequence} has lost tokens"
        tokens.extend(sequence.tokens[len(tokens) :])
        return states(sequence.request, tokens, chain)

    def _spoil(self, step: Step, result: StepResult, fault: str) -> StepResult:
        """Fail the step in one of many ways, after the cache was written."""
        self.seen[fault] += 1
        match fault:
            case "raise":
                self._spoil_blocks(step.entries)
                raise RuntimeError("the accelerator fell over")
            case "entries":
                self._spoil_blocks(step.entries[::2])
                result.failures = {i: f"not a number in entry {i}" for i in range(0, len(step.entries), 2)}
            case "rows":
                result.tokens.append(0)
            case "details":
                result.details = [None] * (len(result.tokens) + 1)
            case "types":
                result.tokens = [float(token) for token in result.tokens] or [0.5]  # type: ignore[misc]
            case "negative":
                result.tokens = [-1] * max(1, len(result.tokens))
            case "nothing":
                return None  # type: ignore[return-value]
            case "backwards":
                result.duration = -1.0
            case _:
                raise Violation(f"unknown fault {fault}")
        return result

    def _spoil_blocks(self, entries: list[Entry]) -> None:
        """What these entries have computed is not there."""
        for entry in entries:
            for position in range(entry.start, entry.start + entry.count):
                block = entry.sequence.blocks[position // self.config.block_size]
                self._kv[block][position % self.config.block_size] = -1


@dataclass
class Choice:
    """What a client has been told about one choice."""

    tokens: list[int] = field(default_factory=list)
    finish: FinishReason | None = None


class Client:
    """Submits, cancels, steps, and holds the engine to its promises after every move."""

    def __init__(
        self,
        config: SchedulerConfig,
        fault: Fault | None = None,
        scheduler: type[Scheduler] = Scheduler,
        journal: Callable[[str], None] | None = None,
    ) -> None:
        self.clock = VirtualClock()
        self.scheduler = scheduler(config)
        self.executor = CheckedExecutor(config, self.clock, fault)
        self.engine = Engine(
            self.scheduler, self.executor, self.clock, self._hear, Journal(journal) if journal else None
        )
        self.requests: dict[str, Request] = {}
        self.choices: dict[tuple[str, int], Choice] = {}
        self.cancelled: set[tuple[str, int]] = set()
        self.refused = 0
        self.refusal: ArmillaryError | None = None

    def submit(self, request: Request) -> bool:
        """Whether the request was accepted."""
        try:
            self.engine.submit(request)
        except ArmillaryError as refusal:
            self.refused += 1
            self.refusal = refusal
            return False
        self.requests[request.id] = request
        self.choices.update({(request.id, index): Choice() for index in range(request.n)})
        return True

    def refuse(self, request: Request) -> ArmillaryError:
        """Why the request was refused, as it must be."""
        assert not self.submit(request) and self.refusal is not None
        return self.refusal

    def cancel(self, request_id: str, index: int | None, reason: FinishReason) -> None:
        """Cancel, and verify that this ends what was meant and nothing else, before the next step."""
        open_before = {key for key, choice in self.choices.items() if choice.finish is None}
        self.engine.cancel(request_id, index, reason)
        for key, choice in self.choices.items():
            meant = key[0] == request_id and index in (None, key[1])
            if key in open_before:
                self.cancelled |= {key} if meant else set()
                assert (choice.finish is not None) == meant, (key, request_id, index)
                assert not meant or choice.finish == reason
        self.scheduler.check()

    def step(self) -> bool:
        moved = self.engine.step()
        self.scheduler.check()
        if not moved and not self.scheduler.held:
            assert not self.scheduler.waiting_count, "something waits, nothing runs, and no step is offered"
            assert self.engine.idle
        return moved

    def finish(self, limit: int = 5000) -> None:
        """Run what is left, and verify that everything has ended, is right, and has given its blocks back."""
        for _ in range(limit):
            if not self.step():
                break
        else:
            raise AssertionError(f"no end after {limit} steps")
        assert self.scheduler.pool.used_count == 0
        for (request_id, index), choice in self.choices.items():
            expected, reason = alone(self.requests[request_id], index)
            assert choice.finish is not None, f"choice {index} of {request_id} never ended"
            if (request_id, index) in self.cancelled or choice.finish in (FinishReason.ERROR, FinishReason.DEADLINE):
                assert choice.tokens == expected[: len(choice.tokens)]
            else:
                assert (choice.tokens, choice.finish) == (expected, reason)
        stats = self.scheduler.stats
        finishes = [choice.finish for choice in self.choices.values()]
        assert stats.finished == {reason: finishes.count(reason) for reason in FinishReason}
        assert stats.generated_tokens == sum(len(choice.tokens) for choice in self.choices.values())
        assert stats.submitted == len(self.requests) and stats.refused == self.refused

    def _hear(self, events: list[Event]) -> None:
        for event in events:
            choice = self.choices[event.request_id, event.index]
            assert choice.finish is None, "news of a choice that has ended"
            assert event.token is not None or event.finish is not None
            assert (event.error is not None) == (event.finish is FinishReason.ERROR)
            assert event.cached <= len(self.requests[event.request_id].prompt)
            if event.token is not None:
                choice.tokens.append(event.token)
            request = self.requests[event.request_id]
            if request.max_tokens == 0 and event.finish is FinishReason.STOP:
                assert event.prompt_detail == states(request, list(request.prompt))[-1]
            choice.finish = event.finish


def random_config(rnd: random.Random, order: str | None = None) -> SchedulerConfig:
    """A small machine on which every rare state is common."""
    max_running = rnd.choice([4, 6, 8])
    return SchedulerConfig(
        num_blocks=rnd.randint(10, 28),
        max_context=40,
        block_size=rnd.choice([1, 2, 4, 4]) if rnd.random() < 0.2 else 4,
        max_step_tokens=rnd.choice([max_running, 12, 64]),
        max_chunk_tokens=rnd.choice([None, 1, 3, 7]),
        max_running=max_running,
        max_waiting=rnd.choice([5, 100]),
        order=order or rnd.choice(["fcfs", "priority", "deadline"]),
        starvation_s=rnd.choice([0.05, 30.0]),
        prefix_cache=rnd.random() < 0.8,
        preempt_every=rnd.choice([0, 0, 1, 3]),
    )


def random_life(rnd: random.Random, client: Client, steps: int, arrivals: int, cancels: float) -> None:
    """Steps with requests that arrive, cancellations and irregular time, to the end of all that arrived.

    Args:
        arrivals: steps from the first on in which a request may come.
        cancels: how often a request is cancelled that came, or a choice of it.
    """
    for number in range(steps):
        if number < arrivals and rnd.random() < 0.5:
            client.submit(random_request(rnd, f"r{number}", client.clock.now()))
        if rnd.random() < cancels:
            client.cancel(
                f"r{rnd.randrange(number + 1)}", rnd.choice([None, 0, 1]), rnd.choice(list(FinishReason)[:3:2])
            )
        if rnd.random() < 0.3:
            client.clock.advance(rnd.random() * 0.1)
        client.step()
    client.finish()


def random_request(rnd: random.Random, name: str, now: float) -> Request:
    """Prompts are few and share beginnings, so that the prefix index has much to do."""
    family = random.Random(rnd.randrange(4))
    prompt = [family.randrange(2) for _ in range(rnd.randint(1, 20))]
    if rnd.random() < 0.3:
        prompt[-1] = 2
    return Request(
        name,
        tuple(prompt),
        max_tokens=rnd.randint(1, 12),
        n=rnd.choice([1, 1, 1, 2, 3, 4]),
        min_tokens=rnd.choice([0, 0, 4]),
        stop_ids=frozenset([2]) if rnd.random() < 0.3 else frozenset(),
        priority=rnd.randint(-2, 2),
        deadline=rnd.choice([None, now - 1.0, now + rnd.random() * 0.3, now + 100.0]),
        identity=rnd.choice(["", "", "adapter"]),
        reuse_prefix=rnd.random() < 0.9,
    )
