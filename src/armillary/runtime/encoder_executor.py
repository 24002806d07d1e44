"""The executor that computes encoders: whole prompts in, vectors and scores out, nothing kept between steps."""

from __future__ import annotations

import torch
from torch import Tensor

from armillary.core.step import Entry, Step, StepResult
from armillary.models.encoder import Encoder
from armillary.models.encoder_spec import EncoderSpec
from armillary.runtime.pooling import PoolingParams, Pools
from armillary.runtime.threads import use_threads

_NOT_FINITE = "the model computed no finite values for this text"
_NO_TEXT = "an encoder generates no tokens; it must be asked for a vector or a score of a whole prompt"


class EncoderExecutor:
    """Runs steps with torch. One thread at a time. Needs a scheduler with `whole_prompts`.

    What is found about a prompt does not depend on what runs beside it, bit for bit (`armillary.models.encoder`).

    Args:
        threads: how many compute; None leaves that to whoever calls.
    """

    def __init__(self, encoder: Encoder, spec: EncoderSpec, threads: int | None = None) -> None:
        self.encoder = encoder
        self.spec = spec
        self._threads = threads

    @property
    def released(self) -> bool:
        """Whether the weights have been given back."""
        return not hasattr(self, "encoder")

    def release(self) -> None:
        """Give the weights back. No further step can be run."""
        del self.encoder

    def run(self, step: Step) -> StepResult:
        """Compute the entries' prompts, and what each one asks for."""
        use_threads(self._threads)
        with torch.inference_mode():
            return self._run(step.entries)

    def _run(self, entries: list[Entry]) -> StepResult:
        failures: dict[int, str] = {}
        tokens: list[Tensor] = []
        types: list[Tensor] = []
        rows, row = [], 0
        for index, entry in enumerate(entries):
            sequence = entry.sequence
            ids = torch.tensor(sequence.tokens[entry.start : entry.start + entry.count])
            params = sequence.request.sampling
            if entry.rows or entry.count != sequence.prompt_length or not isinstance(params, PoolingParams):
                failures[index] = _NO_TEXT
            if int(ids.max()) >= self.spec.vocab_size:
                failures[index] = f"token ids must be from 0 to {self.spec.vocab_size - 1}, given {int(ids.max())}"
                ids = torch.zeros_like(ids)
            second = params.second if isinstance(params, PoolingParams) else None
            kinds = torch.zeros_like(ids)
            if second is not None and self.spec.types > 1:
                kinds[second:] = 1
            tokens.append(ids)
            types.append(kinds)
            rows.append(row)
            row += entry.count
        hidden = self.encoder(torch.cat(tokens), torch.cat(types), [entry.count for entry in entries])
        self._find_broken(hidden, entries, rows, failures)
        details = Pools().take(hidden.float().numpy(), entries, rows, failures) or {}
        details.update(self._scores(hidden, entries, rows, failures))
        placeholders = [0] * sum(entry.rows for entry in entries)
        return StepResult(placeholders, None, details or None, failures or None)

    def _scores(
        self, hidden: Tensor, entries: list[Entry], rows: list[int], failures: dict[int, str]
    ) -> dict[str, object]:
        """Request id -> score, for the entries that want one."""
        asking = []
        for index, entry in enumerate(entries):
            params = entry.sequence.request.sampling
            if index not in failures and isinstance(params, PoolingParams) and params.mode == "score":
                asking.append(index)
        if not asking:
            return {}
        scores = self.encoder.scores(hidden[[rows[index] for index in asking]]).tolist()
        return {entries[index].sequence.request.id: score for index, score in zip(asking, scores, strict=True)}

    def _find_broken(self, hidden: Tensor, entries: list[Entry], rows: list[int], failures: dict[int, str]) -> None:
        """Fail the entries whose hidden states are not finite."""
        if bool(torch.isfinite(hidden.sum(dtype=torch.float32))):
            return
        for index, entry in enumerate(entries):
            if not bool(torch.isfinite(hidden[rows[index] : rows[index] + entry.count]).all()):
                failures.setdefault(index, _NOT_FINITE)
