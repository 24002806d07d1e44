"""The executor that computes: steps through the decoder, on paged keys and values."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence as ReadOnlyList
from typing import TYPE_CHECKING

import numpy as np

from armillary.core.step import Entry, Step, StepResult
from armillary.models.native import NativeDecoder
from armillary.models.spec import ModelSpec
from armillary.runtime.batch import Batch
from armillary.runtime.compute import Floats, make_compute
from armillary.runtime.grammar_masks import Masks
from armillary.runtime.logprobs import PromptLogprobs
from armillary.runtime.pooling import Pools
from armillary.runtime.sampler import Sampler
from armillary.runtime.sampling import SamplingParams

if TYPE_CHECKING:
    from armillary.models.decoder import Decoder

PROMPT_LOGPROB_BYTES = 64 * 2**20
"""Most bytes of logits held at once for prompt logprobs."""

_NOT_FINITE = "the model computed no finite values for this sequence"


class TorchExecutor:
    """Runs steps for real. One thread at a time.

    The tokens of a sequence do not depend on what runs beside it, bit for bit: whatever computes gives each row
    the same bits beside any number of others.

    Args:
        decoder: weights and mathematics.
        num_blocks, block_size: the KV pool, as the scheduler knows it.
        dtype: number format of keys and values, by its name.
        threads: how many compute; None leaves that to whoever calls.
        forced_tokens: write what a grammar forces without a step (`armillary.runtime.grammar_masks`).
    """

    def __init__(
        self,
        decoder: Decoder | NativeDecoder,
        spec: ModelSpec,
        num_blocks: int,
        block_size: int,
        dtype: str = "float32",
        threads: int | None = None,
        forced_tokens: bool = True,
    ) -> None:
        self.decoder = decoder
        self.spec = spec
        self.compute = make_compute(decoder, num_blocks, block_size, dtype, threads)
        self.cache = self.compute.cache
        self.sampler = Sampler(self.compute.sampler())
        self.grammars = Masks(forced_tokens)
        self._prompts: dict[int, PromptLogprobs] = {}
        self._pools = Pools()
        self._batch = Batch([], [], [])

    def release(self) -> None:
        """Give weights, keys, values and buffers back. No further step can be run."""
        self.grammars.close()
        del self.decoder, self.compute, self.cache, self.sampler

    def run(self, step: Step) -> StepResult:
        """Copy blocks, compute the entries' tokens, choose a token for every row that wants one."""
        if step.imports:
            raise NotImplementedError("keys and values that come along with a request cannot be written yet")
        if step.ended:
            self._forget(step.ended)
        if step.copies:
            self.cache.copy(step.copies)
        return self._run(step.entries)

    def _forget(self, ended: list[int]) -> None:
        """Drop what is kept about sequences that have ended."""
        for uid in ended:
            self._prompts.pop(uid, None)
        self._pools.forget(ended)
        self.sampler.forget(ended)
        self.grammars.forget(ended)

    def _batch_of(self, entries: list[Entry]) -> Batch:
        """Who takes part; the batch of the step before where that has not changed."""
        members = [entry.sequence for entry in entries]
        counts = [entry.count for entry in entries]
        wanted = [entry.rows for entry in entries]
        if not self._batch.continues(members, counts, wanted):
            self._batch = Batch(members, counts, wanted)
        return self._batch

    def _run(self, entries: list[Entry]) -> StepResult:
        batch = self._batch_of(entries)
        pending = self.grammars.begin(entries) if batch.constrained else None
        failures: dict[int, str] = {}
        tokens: list[int] = []
        for entry in entries:
            if entry.count == 1:
                tokens.append(entry.sequence.tokens[entry.start])
            else:
                tokens += entry.sequence.tokens[entry.start : entry.start + entry.count]
        if min(tokens) < 0 or max(tokens) >= self.spec.vocab_size:
            self._replace_unknown(tokens, batch, failures)
        hidden, finite = self.compute.hidden(tokens, entries)
        if not finite:
            self._find_broken(hidden, entries, batch, failures)
        prompt_details = self._prompt_details(hidden, entries, batch, failures) if batch.probed else None
        vectors = self._pools.take(hidden, entries, batch.firsts, failures) if batch.pooled else None
        if vectors is not None:
            prompt_details = {**(prompt_details or {}), **vectors}
        if not batch.rows:
            return StepResult([], None, prompt_details, failures or None)
        logits = self.compute.logits(hidden, batch.places)
        masks = None if pending is None else self.grammars.finish(pending)
        sampled = self.sampler.sample(logits, batch.rows, masks)
        for place, message in sampled.failures.items():
            failures.setdefault(batch.owners[place], message)
        result = StepResult(sampled.tokens, sampled.details, prompt_details, failures or None)
        if pending is not None:
            result.more = self.grammars.follow(batch.rows, sampled.tokens, sampled.failures)
            result.costs = self.grammars.costs
        return result

    def _replace_unknown(self, tokens: list[int], batch: Batch, failures: dict[int, str]) -> None:
        """Fail the entries with tokens that are not of the vocabulary, and put others in their place."""
        for place, token in enumerate(tokens):
            if not 0 <= token < self.spec.vocab_size:
                failures[bisect_right(batch.firsts, place) - 1] = (
                    f"token ids must be from 0 to {self.spec.vocab_size - 1}, given {token}"
                )
                tokens[place] = 0

    def _find_broken(self, hidden: Floats, entries: list[Entry], batch: Batch, failures: dict[int, str]) -> None:
        """Fail the entries whose hidden states are not finite, and clear what they stored.

        What is left in a block beyond the written positions is multiplied by zero, and zero times NaN is
        NaN: without clearing, a later sequence in the same block would fail too.
        """
        for index, (entry, first) in enumerate(zip(entries, batch.firsts, strict=True)):
            if not np.isfinite(hidden[first : first + entry.count]).all():
                failures.setdefault(index, _NOT_FINITE)
                self.cache.clear(entry.sequence.blocks, entry.start, entry.count)

    def _prompt_details(
        self, hidden: Floats, entries: ReadOnlyList[Entry], batch: Batch, failures: dict[int, str]
    ) -> dict[str, object] | None:
        """Gather prompt logprobs, and hand over those of the prompts that this step completes."""
        details: dict[str, object] | None = None
        for index, entry in enumerate(entries):
            sequence = entry.sequence
            params = sequence.request.sampling
            if not isinstance(params, SamplingParams) or params.prompt_logprobs is None or sequence.index:
                continue
            found = self._prompts.get(sequence.uid)
            if found is None:
                found = self._prompts[sequence.uid] = PromptLogprobs(sequence.prompt_length)
            if found.delivered or index in failures:
                continue
            last = sequence.prompt_length - 1
            size = max(1, PROMPT_LOGPROB_BYTES // (8 * self.spec.vocab_size))
            end = entry.start + entry.count
            for begin in range(entry.start, min(end, last), size):
                stop = min(begin + size, end, last)
                first = batch.firsts[index] - entry.start
                logits = self.compute.logits(hidden, list(range(first + begin, first + stop)))
                tokens = sequence.tokens[begin + 1 : stop + 1]
                found.put(
                    begin + 1, self.sampler.token_logprobs(logits, tokens, [params.prompt_logprobs] * len(tokens))
                )
            if end >= sequence.prompt_length:
                found.delivered = True
                details = details or {}
                details[sequence.request.id] = found.entries
        return details
