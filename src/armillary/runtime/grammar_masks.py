"""Where each constrained sequence stands in its grammar, and which tokens may come next.

Masks are computed in a thread of their own while the model computes, and waited for before sampling. A token
that is certain, because the grammar leaves one text and the vocabulary one tokenisation of it, is found before
any mask is computed, and in one way whether it is then written at once (`Masks.follow`) or offered as the only
choice: so the tokens are the same with forced tokens on and off.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as ReadOnlyList
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from armillary.core.request import Sequence
from armillary.core.step import Entry, OwnFault
from armillary.runtime.grammar import Grammar
from armillary.runtime.grammar_words import in_words
from armillary.runtime.sampling import SamplingParams
from armillary.runtime.wishes import Row

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_STEP_SECONDS = 1.0
"""Processor time of one step of a grammar. Everybody waits for it, so one that takes longer goes no further."""
Words = npt.NDArray[np.uint32]
Allowed = npt.NDArray[np.bool_]
Found = tuple[dict[int, Allowed | OwnFault], float]
Pending = Future[Found]
Wanted = tuple[int, int, Sequence, Grammar]
"""First row of an entry, how many rows it has, whose it is, and its grammar."""

MAX_RUN = 256
"""Most tokens that are written in one go, so that a grammar which forces thousands still ends when cancelled."""


@dataclass(slots=True)
class GrammarStats:
    """What grammars have cost since the start. Monotone; seconds are of wall time.

    Attributes:
        steps: steps with at least one constrained row.
        masks: masks computed, a token that was certain included.
        mask_seconds: computing them, mostly beside the model.
        wait_seconds: what of that the sampler had to wait for.
        follow_seconds: looking for forced tokens after sampling.
        forced_tokens: tokens written without a step of their own.
        failures: sequences that a grammar ended, because it had become too complex or allowed nothing.
    """

    steps: int = 0
    masks: int = 0
    mask_seconds: float = 0.0
    wait_seconds: float = 0.0
    follow_seconds: float = 0.0
    forced_tokens: int = 0
    failures: int = 0


class GrammarState:
    """One sequence's place in its grammar. Survives preemption: it depends on the generated tokens alone."""

    __slots__ = ("_ahead", "_count", "_ends", "_grammar", "_last", "_matcher", "problem")

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._ends = grammar.tokens.ends
        self._start()
        self.problem: str | None = None
        """Why nothing more can be said; set once."""

    def _start(self) -> None:
        self._matcher: LLMatcher = self._grammar.matcher()
        self._count, self._last = 0, -1
        self._ahead: deque[int] = deque()
        """What is certain to come, found out at once: asking anew after each token costs as much as the whole rest."""

    def copy(self) -> GrammarState:
        """One that can go on in another way."""
        twin = copy(self)
        twin._matcher = self._matcher.deep_copy()
        twin._ahead = self._ahead.copy()
        return twin

    @property
    def sure(self) -> bool:
        """Whether the vocabulary has one tokenisation of what the grammar forces."""
        return self._grammar.tokens.certain

    def catch_up(self, sequence: Sequence) -> None:
        """Take in what the sequence has generated since the last time."""
        count = self._count
        if count > sequence.generated or (count and sequence.tokens[sequence.prompt_length + count - 1] != self._last):
            self._start()  # not all that it took in was kept
        for token in sequence.tokens[sequence.prompt_length + self._count :]:
            self.certain()  # as it was asked when the token was chosen, so that the same is found ahead
            self.take(token)

    def take(self, token: int) -> None:
        """Go on with this token."""
        if self.problem is None and token not in self._ends and not self._matcher.consume_token(token):
            self.fail(f"token {token} does not go on from here")
        if self._ahead and self._ahead.popleft() != token:
            self._ahead.clear()
        self._count += 1
        self._last = token

    def certain(self) -> int | None:
        """The only token that may come next, where it is certain: forced by the grammar, or the end."""
        if self.problem is not None:
            return None
        if not self._ahead:
            self._ahead.extend(self._matcher.compute_ff_tokens())
        if self._ahead:
            return self._ahead[0]
        if self._matcher.is_error():
            self.fail("")
        elif self._matcher.is_stopped():
            return self._ends[0]
        return None

    def mask(self, words: Words) -> None:
        """Set the bits of the tokens that may come next; none where there is a problem."""
        token = self.certain()
        if token is not None:
            words[token // 32] = 1 << (token % 32)
        elif self.problem is None:
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            if self._matcher.is_error():
                self.fail("")
            elif not words.any():
                self.fail("no token of the vocabulary can come next")

    def fail(self, reason: str) -> None:
        """Give up, for the matcher's own reason where it has one."""
        if self.problem is None:
            found = self._matcher.get_error() if self._matcher.is_error() else ""
            self.problem = in_words(found)[:300] if found else reason


class Masks:
    """The grammars of an executor's sequences. Its methods are called from the executor's thread.

    Args:
        forced: whether certain tokens are written without a step.
    """

    def __init__(self, forced: bool = True) -> None:
        self.forced = forced
        self._stats = GrammarStats()
        self._states: dict[int, GrammarState] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._job: Pending | None = None
        self._wanted: list[Wanted] = []
        self.costs: dict[str, float] = {}
        """Of the latest step with a grammar, in seconds, as `StepResult.costs` has them: `grammar_mask` computing
        masks beside the model, `grammar_wait` waiting for them, `grammar_follow` looking for forced tokens. The
        last two lengthen the step."""

    def stats(self) -> GrammarStats:
        """What it has cost until now. From any thread."""
        return replace(self._stats)

    def close(self) -> None:
        """End the thread; it starts again where it is needed again."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None

    def forget(self, uids: Iterable[int]) -> None:
        """Drop what is kept about sequences that have ended."""
        if self._states:
            self._settle()
            for uid in uids:
                self._states.pop(uid, None)

    def begin(self, entries: ReadOnlyList[Entry]) -> Pending | None:
        """Start computing the masks of a step's rows; None where no row has a grammar."""
        wanted: list[Wanted] = []
        row = 0
        for entry in entries:
            if entry.rows:
                params = entry.sequence.request.sampling
                if isinstance(params, SamplingParams) and params.grammar is not None:
                    wanted.append((row, entry.rows, entry.sequence, params.grammar))
                row += entry.rows
        if not wanted:
            return None
        self._settle()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "masks")
        self._wanted = wanted
        self._job = self._pool.submit(self._compute, wanted)
        return self._job

    def finish(self, pending: Pending) -> dict[int, Allowed | OwnFault]:
        """Wait for the masks: row -> the tokens that it may take, bool [the grammar's vocabulary]; or why it fails."""
        started = time.perf_counter()
        # On a machine so busy that the thread has not begun, waiting for it would cost more than its work.
        masks, seconds = self._compute(self._wanted) if pending.cancel() else pending.result()
        waited = time.perf_counter() - started
        self.costs = {"grammar_mask": seconds, "grammar_wait": waited, "grammar_follow": 0.0}
        stats = self._stats
        stats.wait_seconds += waited
        stats.mask_seconds += seconds
        stats.masks += len(masks)
        stats.steps += 1
        stats.failures += sum(isinstance(mask, OwnFault) for mask in masks.values())
        return masks

    def follow(
        self, rows: ReadOnlyList[Row], tokens: ReadOnlyList[int], failed: Mapping[int, str]
    ) -> dict[int, list[tuple[int, object]]] | None:
        """The tokens that are certain after each row's new one, as `StepResult.more` has them.

        A request that wants logprobs has none: the model must be asked what it thinks of every token.

        Args:
            failed: rows whose token is a placeholder.
        """
        if not self.forced or not self._states:
            return None
        started = time.perf_counter()
        found: dict[int, list[tuple[int, object]]] = {}
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            sequence = row.sequence
            state = self._states.get(sequence.uid)
            if state is None or index in failed or token in sequence.request.stop_ids:
                continue
            params = sequence.request.sampling
            if not isinstance(params, SamplingParams) or params.logprobs is not None or not state.sure:
                continue
            if sequence.forks:
                state = state.copy()  # the choices part here; each catches up under its own uid
            room = min(sequence.limit - len(sequence.tokens) - 1, MAX_RUN)
            if run := _run(state, token, room, sequence.request.stop_ids):
                found[index] = [(token, None) for token in run]
                self._stats.forced_tokens += len(run)
        self.costs["grammar_follow"] = time.perf_counter() - started
        self._stats.follow_seconds += self.costs["grammar_follow"]
        return found or None

    def _settle(self) -> None:
        """Wait for masks that nobody asked for, because their step failed."""
        if self._job is not None:
            wait([self._job])
            self._job = None

    def _compute(self, wanted: list[Wanted]) -> Found:
        """Masks for these rows. In the thread of the masks, as a rule."""
        started = time.perf_counter()
        masks: dict[int, Allowed | OwnFault] = {}
        for row, count, sequence, grammar in wanted:
            state = self._states.get(sequence.uid)
            if state is None:
                state = self._states[sequence.uid] = GrammarState(grammar)
            words = np.zeros((grammar.tokens.size + 31) // 32, dtype=np.uint32)
            with _guarded(state):
                state.catch_up(sequence)
                state.mask(words)
            found: Allowed | OwnFault
            if state.problem is None:
                bits = np.unpackbits(words.view(np.uint8), count=grammar.tokens.size, bitorder="little")
                found = bits.view(np.bool_)
            else:
                found = OwnFault(f"the grammar of this request cannot go on: {state.problem}")
            for place in range(row, row + count):
                masks[place] = found
        return masks, time.perf_counter() - started


def _run(state: GrammarState, token: int, room: int, stop_ids: frozenset[int]) -> list[int]:
    """Up to `room` tokens that are certain after this one."""
    run: list[int] = []
    with _guarded(state):
        state.take(token)
        while len(run) < room and (certain := state.certain()) is not None:
            run.append(certain)
            if certain in stop_ids:
                break
            state.take(certain)
    return run


@contextmanager
def _guarded(state: GrammarState) -> Iterator[None]:
    """Whatever breaks in a grammar, or holds up the step, is the end of its sequence alone. A panic of llguidance is
    no `Exception`."""
    started = time.thread_time()
    try:
        yield
        if time.thread_time() - started > MAX_STEP_SECONDS:
            state.fail(f"one step of it took more than {MAX_STEP_SECONDS:g} seconds of processor time")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        state.problem = state.problem or f"{type(error).__name__}: {error}"[:300]
