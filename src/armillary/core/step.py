"""A step (one batch of work), its result, and the executor that turns one into the other."""

from __future__ import annotations

from collections.abc import Sequence as ReadOnlyList
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from armillary.core.prefix import Link
from armillary.core.request import FinishReason, Sequence
from armillary.core.stats import SchedulerStats


class Entry:
    """One sequence's share of a step: compute positions `start .. start + count - 1`.

    `rows` is how many tokens to sample after the last of these positions: 0 while known tokens remain to
    be computed and for a request that generates nothing, else 1 at the end of them, `n` where a request with
    n > 1 has just computed its prompt.
    Row r of an entry with several rows samples for choice index r.
    """

    __slots__ = ("count", "rows", "sequence", "start")

    def __init__(self, sequence: Sequence, start: int, count: int, rows: int) -> None:
        self.sequence = sequence
        self.start = start
        self.count = count
        self.rows = rows


@dataclass(slots=True)
class Step:
    """What the executor must do, in this order: `copies`, `imports`, then compute and sample `entries`.

    An entry may attend to positions that another entry of the step computes, in blocks that both hold: the keys and
    values of all entries must be stored, layer by layer, before any of them attends.

    Attributes:
        index: number of the step, from 0.
        entries: no sequence appears twice. When the step runs, every sequence's `blocks` already covers
            positions up to `start + count - 1`, and `tokens` holds the ids to compute.
        copies: (source block, target block) pairs whose whole content is copied first (copy-on-write).
        imports: (sequence, first position, end) whose keys and values come with the request and are written next.
        ended: uids of sequences that ended since the last step; the executor may forget them.
        tokens: total of `count` over the entries, at most the scheduler's budget.
        admitted, preempted: the scheduler's decisions, for the journal. Who computed from what another entry failed
            to compute is preempted once the step has run.
        announced: links on the blocks that parts of prompts fill, by entry; others find them from now on.
    """

    index: int
    entries: list[Entry]
    copies: list[tuple[int, int]] = field(default_factory=list)
    imports: list[tuple[Sequence, int, int]] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    tokens: int = 0
    admitted: list[Sequence] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    announced: list[tuple[Entry, list[Link]]] = field(default_factory=list)

    def bring(self, sequence: Sequence) -> int:
        """Count what comes along with a newly admitted sequence as computed; returns how many positions.

        The last known token is always computed here: its logits are what comes next.
        """
        start, end = sequence.computed, min(sequence.request.handed, len(sequence.tokens) - 1)
        if end <= start:
            return 0
        self.imports.append((sequence, start, end))
        sequence.computed = end
        return end - start


@dataclass(slots=True)
class StepResult:
    """What the executor found.

    Attributes:
        tokens: one sampled token per row, entries in order, rows of an entry in order of choice.
        details: per row, anything that travels with the token to the client (logprobs); None if no row
            has any.
        prompt_details: request id -> anything about the prompt (prompt logprobs, a pooled vector), once, in the
            step that completes the prompt.
        failures: index of an entry -> message, for entries that failed alone (an `OwnFault` where the request
            is to blame). Their rows in `tokens` still hold a placeholder.
        duration: seconds that the step took, set by executors that predict instead of compute.
        pause: seconds that pass after the step's news were delivered and before the next step can begin; set by
            executors that predict.
        more: row -> (token, detail) pairs that follow the row's token with certainty, so that no step need be
            taken to choose them. They are taken in up to the token that ends the sequence, stop token or limit,
            and computed with the next step.
        costs: seconds that parts of the step took, by name; for observers.
    """

    tokens: list[int]
    details: ReadOnlyList[object] | None = None
    prompt_details: dict[str, object] | None = None
    failures: dict[int, str] | None = None
    duration: float | None = None
    pause: float | None = None
    more: dict[int, list[tuple[int, object]]] | None = None
    costs: dict[str, float] | None = None

    def check(self, step: Step) -> None:
        """Raise `ValueError` unless there is a plain, non-negative token for every row, and a detail if for any.

        A duration is left to the clock, which refuses what is no time.
        """
        rows = sum([entry.rows for entry in step.entries])
        if len(self.tokens) != rows or (self.details is not None and len(self.details) != rows):
            details = "no" if self.details is None else len(self.details)
            raise ValueError(
                f"the executor must return a token and a detail for each of {rows} rows, given {len(self.tokens)} "
                f"tokens and {details} details"
            )
        for token in self.tokens:
            if type(token) is not int or token < 0:
                raise ValueError("the executor must return tokens as plain integers of 0 or more")
        if self.pause is not None and not 0.0 <= self.pause < inf:
            raise ValueError(f"the executor must let a pause of 0 or more seconds follow, given {self.pause}")
        for row, following in self.more.items() if self.more else ():
            if not 0 <= row < rows or any(type(token) is not int or token < 0 for token, _ in following):
                raise ValueError("the executor must let plain integers of 0 or more follow rows that there are")

    def give(self, sequence: Sequence, row: int, events: list[Event], stats: SchedulerStats) -> FinishReason | None:
        """A row's token, and those that follow it with certainty, up to the one that ends the sequence.

        Returns:
            Why it ends; None if it goes on.
        """
        details, token = self.details, self.tokens[row]
        finish = sequence.take(token)
        events.append(Event(sequence.request.id, sequence.index, token, finish, details and details[row]))
        stats.generated_tokens += 1
        if len(sequence.tokens) == sequence.prompt_length + 1:
            events[-1].tell_prompt(sequence, self)
        for token, detail in self.more.get(row, ()) if self.more else ():
            if finish is not None:
                break
            finish = sequence.take(token)
            events.append(Event(sequence.request.id, sequence.index, token, finish, detail))
            stats.generated_tokens += 1
            stats.forced_tokens += 1
        if finish is not None:
            stats.finished[finish] += 1
        return finish


class OwnFault(str):
    """A failure's message where the request brought it about itself: a wish that cannot be met, found out late."""

    __slots__ = ()


class Executor(Protocol):
    """Runs steps: `TorchExecutor` computes them, a virtual executor predicts how long they take."""

    def run(self, step: Step) -> StepResult:
        """Run one step. Raising fails the sequences of the step, never the engine.

        The result must pass `StepResult.check`; one that does not counts as raising.
        """
        ...


class Event:
    """One piece of news about one choice of a request, delivered to the engine's sink.

    Attributes:
        request_id, index: whose news.
        token: the newly generated token, or None (a cancelled or failed sequence ends without one).
        detail: what the executor attached to the token.
        prompt_detail: what the executor attached to the prompt, with the first token of choice 0, or with the end
            of a request that generates nothing.
        finish: set in the last event of a choice, exactly once.
        error: message, when `finish` is ERROR; as the executor gave it.
        cached: prompt tokens that came from the prefix index.
    """

    __slots__ = (
        "cached", "detail", "error", "finish", "index", "prompt_detail", "request_id", "token",
    )  # fmt: skip

    def __init__(
        self,
        request_id: str,
        index: int,
        token: int | None,
        finish: FinishReason | None = None,
        detail: object = None,
        prompt_detail: object = None,
        error: str | None = None,
        cached: int = 0,
    ) -> None:
        self.request_id = request_id
        self.index = index
        self.token = token
        self.finish = finish
        self.detail = detail
        self.prompt_detail = prompt_detail
        self.error = error
        self.cached = cached

    def tell_prompt(self, sequence: Sequence, result: StepResult) -> None:
        """Attach what is known about the prompt of a sequence that has just been computed."""
        self.cached = sequence.cached
        if result.prompt_details is not None and sequence.index == 0:
            self.prompt_detail = result.prompt_details.get(sequence.request.id)
