"""The scheduler: chooses steps. It knows tokens, blocks, budgets and order, and nothing else.

Every sequence has known tokens and computed tokens; a step lets computed chase known under one token
budget. A prompt, a chunk of a prompt, the next token, the recomputation after a preemption and the rest
after a prefix hit are all the same thing: `len(tokens) - computed` positions that are still to compute.
"""

from __future__ import annotations

from collections.abc import Mapping

from armillary.core.admission import check_request, check_room
from armillary.core.audit import audit
from armillary.core.blocks import BlockPool
from armillary.core.config import SchedulerConfig
from armillary.core.holding import Holding
from armillary.core.order import Pace, make_order
from armillary.core.prefix import Digest, Link, Name, PrefixIndex, block_digest
from armillary.core.queue import WaitingQueue
from armillary.core.request import FinishReason, Request, Sequence
from armillary.core.sharing import Sharing
from armillary.core.stats import SchedulerStats
from armillary.core.step import Entry, Event, Step, StepResult
from armillary.errors import ArmillaryError, Code


class Scheduler:
    """Turns requests into steps and results into events. Single-threaded; time is an argument.

    Invariants between calls: every block is free or held by exactly the sequences whose table lists it;
    a running sequence holds blocks for all tokens that were known when it was admitted; a sequence is
    running, waiting or ended, and ends once.
    """

    def __init__(self, config: SchedulerConfig, digest: Digest = block_digest) -> None:
        self.config = config
        self.index = PrefixIndex(config.num_blocks, config.block_size, digest)
        self.pool = BlockPool(config.num_blocks, self.index.forget)
        self.pace = Pace()
        self.order = make_order(config.order, config.starvation_s, self.pace)
        self.waiting = WaitingQueue(self.order)
        self.running: list[Sequence] = []
        self.stats = SchedulerStats()
        self._alive: dict[str, list[Sequence]] = {}
        self._ended: list[int] = []
        self.held = Holding(self.pool, self.index)
        self.sharing = Sharing(config, self.index, self.pool, self.stats)
        self._next_uid = 0
        self.slots = 0
        """Running sequences, each with the siblings that it will still split off."""
        self._stale_running = False
        """Whether `running` still lists a sequence that has ended."""
        self.blocked: tuple[int, int, Name] | None = None
        """The head of the queue that did not fit, the room that there was, and the digest of its next block."""

    @property
    def running_count(self) -> int:
        return len(self.running)

    @property
    def waiting_count(self) -> int:
        return len(self.waiting)

    @property
    def idle(self) -> bool:
        """Whether no request is alive."""
        return not self._alive

    def alive(self, request: Request) -> bool:
        """Whether this very request has not ended."""
        siblings = self._alive.get(request.id)
        return siblings is not None and siblings[0].request is request

    def add(self, request: Request, now: float) -> None:
        """Accept a request, or refuse it with the figures that say why.

        Raises:
            ArmillaryError: INVALID_REQUEST, CONTEXT_LENGTH, CANNOT_FIT (it would never fit), DEADLINE, QUEUE_FULL.
        """
        try:
            if request.id in self._alive or request.id in self.held:
                raise ArmillaryError(Code.INVALID_REQUEST, f"request id {request.id!r} is already in use", "id")
            check_request(request, self.config, now)
            check_room(len(request.prompt), self.config, self.waiting.load.total)
        except ArmillaryError:
            self.stats.refused += 1
            raise
        sequence = Sequence(request, 0, self._next_uid, now)
        self._next_uid += 1
        self._alive[request.id] = [sequence]
        self.waiting.push(sequence, now)
        self.stats.submitted += 1

    def cancel(
        self, request_id: str, index: int | None = None, reason: FinishReason = FinishReason.CANCELLED
    ) -> list[Event]:
        """End a request, or one choice of it, in whatever state it is; its blocks are free on return.

        A request that is unknown or has ended is left alone: the caller may have raced its end.
        """
        events: list[Event] = []
        for sequence in list(self._alive.get(request_id, ())):
            choices = sequence.choices
            if index is None or choices == [index]:
                self._end(sequence, reason, events)
            elif index in choices:
                sequence.dropped |= {index}
                self.stats.finished[reason] += 1
                events.append(Event(request_id, index, None, reason))
        self.sweep()
        return events

    def next_step(self, now: float) -> Step | None:
        """Choose the next batch of work; None when there is none.

        Every running sequence gets one token first, so no long prompt can hold up its neighbours; what is
        left of the budget goes to the longest-running sequences with more to compute, then to newcomers.
        """
        step, every = Step(self.stats.steps, []), self.config.preempt_every
        if every and (step.index + 1) % every == 0:
            self._force_preemption(step, now)
        self.choose(step, self.running[:], now)
        if not step.entries:
            return None
        step.ended, self._ended = self._ended, []
        return step

    def choose(self, step: Step, sequences: list[Sequence], now: float) -> None:
        """Fill a step with `sequences`, the last of those that run, beside one token of each other, and newcomers."""
        self.waiting.refresh(now)
        budget = self.config.max_step_tokens - self._schedule_running(step, sequences, now)
        if not step.preempted or not step.entries:
            budget = self.admit(step, budget, now)
        step.tokens = self.config.max_step_tokens - budget
        if step.tokens:
            self.stats.steps += 1
            self.stats.reached(len(self.running), step.tokens)
            self.stats.evictions = self.index.evictions

    def _schedule_running(self, step: Step, sequences: list[Sequence], now: float) -> int:
        """Enter running sequences into the step; returns the tokens that all who run take."""
        config, block_size, entries = self.config, self.config.block_size, step.entries
        extra = config.max_step_tokens - len(self.running)
        chunk = config.max_chunk_tokens or config.max_step_tokens
        tokens = beside = len(self.running) - len(sequences)
        copy_owners: list[Sequence] = []
        prompts = False
        for sequence in sequences:
            if not sequence.running:
                continue  # gave way to an earlier sequence of this very loop
            start, count = sequence.computed, 1
            needed = len(sequence.tokens) - start
            if needed > 1:
                count = min(needed, chunk, 1 + extra)
                extra -= count - 1
                prompts = config.prefix_cache
            if sequence.shares_tail:
                source = sequence.blocks[-1]
                if not self._own_tail(sequence, step, now):
                    continue
                if sequence.blocks[-1] != source:
                    copy_owners.append(sequence)
            if start + count > len(sequence.blocks) * block_size and not self._grow(sequence, start + count, step, now):
                continue
            entries.append(Entry(sequence, start, count, 0 if count < needed else sequence.rows))
            tokens += count
        if step.preempted:
            step.entries = [e for e in entries if e.sequence.running]
            step.copies = [c for c, s in zip(step.copies, copy_owners, strict=True) if s.running]
            tokens = beside + sum(e.count for e in step.entries)
        if prompts:
            self.stats.reached(0, tokens)
            tokens = self.sharing.advance(step, tokens)
        self.stats.copies += len(step.copies)
        return tokens

    def _grow(self, sequence: Sequence, positions: int, step: Step, now: float) -> bool:
        """Give a running sequence blocks for so many positions, preempting whoever is last in order."""
        while positions > len(sequence.blocks) * self.config.block_size:
            if not self._free_one(sequence, step, now):
                return False
            sequence.blocks.append(self.pool.allocate())
        return True

    def _own_tail(self, sequence: Sequence, step: Step, now: float) -> bool:
        """Copy-on-write: make the block that is about to be written to the sequence's own."""
        block = sequence.blocks[-1]
        if self.pool.holders(block) > 1:
            if not self._free_one(sequence, step, now):
                return False
            if self.pool.holders(block) > 1:  # making room may have ended the sharing
                copy = self.pool.allocate()
                step.copies.append((block, copy))
                self.pool.release((block,), self.index.indexed)
                sequence.blocks[-1] = copy
        sequence.shares_tail = False
        return True

    def _free_one(self, sequence: Sequence, step: Step, now: float) -> bool:
        """Preempt until a block is free; False if the sequence itself had to give way."""
        while self.pool.free_count == 0:
            victim = self._last_in_order(self.running, now)
            self._preempt(victim, step, now)
            if victim is sequence:
                return False
        return True

    def _last_in_order(self, sequences: list[Sequence], now: float) -> Sequence:
        """Who gives way first."""
        key = self.order.key
        return max(sequences, key=lambda s: (key(s, now), s.uid))

    def _force_preemption(self, step: Step, now: float) -> None:
        """Preempt the last sequence that has gained a token since its admission, so that all make progress."""
        candidates = [s for s in self.running if len(s.tokens) > s.admitted_length]
        if candidates:
            self._preempt(self._last_in_order(candidates, now), step, now)

    def _preempt(self, sequence: Sequence, step: Step, now: float) -> None:
        """Take all blocks away; the sequence waits and computes anew what the prefix index cannot supply."""
        self._release(sequence)
        self.running.remove(sequence)
        sequence.computed = 0
        self.waiting.push(sequence, now)
        step.preempted.append(sequence)
        self.stats.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        """Leave the running state and give all blocks back."""
        self.pool.release(reversed(sequence.blocks), self.index.indexed)
        sequence.blocks = []
        sequence.chain = []
        sequence.shares_tail = False
        sequence.running = False
        self.slots -= 1 + sequence.forks

    def admit(self, step: Step, budget: int, now: float) -> int:
        """Admit from the head of the queue while blocks, slots and budget last; returns the budget left.

        Admission reserves the blocks of all known tokens. Beside others, it also leaves one free block per
        running sequence, so that a newcomer is not the reason for a preemption within the next
        `block_size` steps. Nobody is admitted past a head that does not fit.
        """
        config, pool = self.config, self.pool
        chunk = config.max_chunk_tokens or config.max_step_tokens
        while budget > 0:
            sequence = self.waiting.peek()
            if sequence is None or self.slots + 1 + sequence.forks > config.max_running:
                break
            # One block per running sequence stays free. A head that did not fit is looked at again when
            # there is more room, or when its next block has been computed for somebody else.
            room = pool.free_count - len(self.running)
            blocked = self.blocked
            if blocked and blocked[0] == sequence.uid and room <= blocked[1] and blocked[2] not in self.index:
                break
            known = len(sequence.tokens)
            if config.whole_prompts and known > budget:
                break
            links: list[Link] = []
            if config.prefix_cache and sequence.request.reuse_prefix:
                links = self.index.find(sequence.tokens, sequence.digests, sequence.request.identity)
            new_blocks = config.blocks_for(known) - len(links)
            shared = [link.block for link in links]
            if new_blocks + pool.free_among(shared) > room:
                self.blocked = (sequence.uid, room, next(iter(sequence.digests[len(links) :]), b""))
                break
            self.blocked = None
            self.waiting.remove(sequence)
            pool.share_all(shared)
            sequence.blocks = shared + pool.take(new_blocks)
            sequence.chain = links
            sequence.computed = len(links) * config.block_size
            if sequence.admitted_length == 0:
                sequence.cached = sequence.computed
                self.stats.imported_tokens += step.bring(sequence)
            sequence.running = True
            sequence.admitted_length = known
            self.slots += 1 + sequence.forks
            self.running.append(sequence)
            self.stats.prefix_query_tokens += known
            self.stats.prefix_hit_tokens += len(links) * config.block_size
            count = min(known - sequence.computed, budget, chunk)
            rows = sequence.rows if sequence.computed + count == known else 0
            step.entries.append(Entry(sequence, sequence.computed, count, rows))
            step.admitted.append(sequence)
            if config.prefix_cache:
                self.sharing.announce(step, step.entries[-1])
            budget -= count
        return budget

    def commit(self, step: Step, result: StepResult, now: float, started: float) -> list[Event]:
        """Take a step's result in; returns what happened to whom. `fail` has taken its failures in.

        Args:
            result: one that passes `StepResult.check`.
            started: the time at which the step was chosen; `now - started` is its duration.
        """
        self.pace.observe(now - started, step.tokens)
        stats, block_size, prefix_cache = self.stats, self.config.block_size, self.config.prefix_cache
        stats.computed_tokens += step.tokens
        events: list[Event] = []
        row = 0
        for entry in step.entries:
            sequence = entry.sequence
            first_row, row = row, row + entry.rows
            if not sequence.running:
                continue  # has ended, or must compute anew
            sequence.computed = entry.start + entry.count
            if prefix_cache and sequence.computed >= (len(sequence.chain) + 1) * block_size:
                self.sharing.index_filled(sequence, sequence.computed // block_size)
            if entry.rows == 1:
                if (finish := result.give(sequence, first_row, events, stats)) is not None:
                    self.retire(sequence, finish)
            elif entry.rows > 1:
                for sibling in self._fork(sequence):
                    if (finish := result.give(sibling, first_row + sibling.index, events, stats)) is not None:
                        self.retire(sibling, finish)
            elif not sequence.rows and sequence.computed == sequence.prompt_length:
                self._end(sequence, FinishReason.STOP, events)
                events[-1].tell_prompt(sequence, result)
        self.sweep()
        return events

    def fail(self, step: Step, failures: Mapping[int, str], now: float) -> list[Event]:
        """End the sequences of the entries that failed, index -> message, and nobody else's.

        Who has taken blocks that one of them was to compute computes them anew.
        """
        events: list[Event] = []
        failed = {entry: failures[i] for i, entry in enumerate(step.entries) if i in failures}
        lost = self.sharing.withdraw(step, failed)
        for entry, message in failed.items():
            if entry.sequence.running:
                self._end(entry.sequence, FinishReason.ERROR, events, message)
        self.sweep()
        self._compute_anew(step, lost, now)
        return events

    def abandon(self, step: Step, now: float) -> None:
        """The step was interrupted: nobody ends for it, and what it was to compute is computed anew."""
        self._compute_anew(step, self.sharing.withdraw(step, step.entries), now)

    def _compute_anew(self, step: Step, lost: set[Link], now: float) -> None:
        for sequence in [s for s in self.running if not lost.isdisjoint(s.chain)]:
            self._preempt(sequence, step, now)

    def _fork(self, parent: Sequence) -> list[Sequence]:
        """Split the choices of a request with n > 1, less those dropped; all share every block of the prompt."""
        choices = parent.choices
        parent.forks, parent.rows = 0, 1
        parent.shares_tail = parent.computed % self.config.block_size != 0
        self.slots -= len(parent.dropped - {parent.index})
        siblings = []
        for index in choices:
            if index == parent.index:
                siblings.append(parent)
                continue
            child = parent.fork(index, self._next_uid)
            self._next_uid += 1
            for block in child.blocks:
                self.pool.share(block)
            siblings.append(child)
            self.running.append(child)
            self._alive[parent.request.id].append(child)
        if parent not in siblings:
            self.retire(parent, FinishReason.CANCELLED)
        return siblings

    def _end(self, sequence: Sequence, reason: FinishReason, events: list[Event], error: str | None = None) -> None:
        """End a sequence without a token, and with it the siblings that it never split off."""
        choices = sequence.choices
        events.extend(Event(sequence.request.id, index, None, reason, error=error) for index in choices)
        self.stats.finished[reason] += len(choices)
        self.retire(sequence, reason)

    def retire(self, sequence: Sequence, reason: FinishReason) -> None:
        """Free what an ended sequence holds. `sweep` must follow before the next step."""
        if sequence.running:
            if sequence.request.hold and reason in (FinishReason.STOP, FinishReason.LENGTH):
                self.held.keep(sequence)
            self._release(sequence)
            self._stale_running = True
        else:
            self.waiting.remove(sequence)
        sequence.finish = reason
        self._ended.append(sequence.uid)
        alive = self._alive[sequence.request.id]
        alive.remove(sequence)
        if not alive:
            del self._alive[sequence.request.id]

    def sweep(self) -> None:
        """Drop the sequences that ended from the running list."""
        if self._stale_running:
            self._stale_running = False
            self.running = [s for s in self.running if s.running]

    def check(self) -> None:
        """Verify the accounting; raises `RuntimeError` on a difference. For tests and idle moments."""
        audit(self.running, self.waiting, self._alive, self.slots, self.pool, self.index, self.held)
