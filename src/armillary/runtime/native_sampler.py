"""The sampler's kernels (`src/native/sampler.inl`), called with what the torch sampler is called with."""

from __future__ import annotations

from collections.abc import Sequence as ReadOnlyList
from typing import Any

import numpy as np
import numpy.typing as npt

from armillary.kernels import native
from armillary.runtime.sampling import TokenLogprobs

Scores = npt.NDArray[np.float32]
Draws = npt.NDArray[np.float64]
"""[rows, 5]: temperature, top_k, top_p, min_p, and the number from 0 to below 1 that the token is drawn with."""
NONE_LEFT, NOT_FINITE = -1, -2
"""Instead of a token: all logits are -infinity; one is NaN or +infinity."""
GREEDY_DRAW = (0.0, 0.0, 1.0, 0.0, 0.0)
"""A row of draws: the largest logit, the first of equals."""


class NativeSampler:
    """Chooses tokens and tells their logprobs. One call runs at a time.

    Args:
        path: the kernels to compute with.
        team: the threads that share the rows of a large vocabulary, those of the model's program; None: the caller's.
    """

    def __init__(self, path: str, team: Any = None) -> None:
        extension = native.extension()
        self._sampler = extension.Sampler(path, extension.Team(1) if team is None else team)
        self._rows = np.arange(0)
        self._tokens = np.empty(0, dtype=np.int64)

    def choose(self, logits: Scores, draws: Draws) -> list[int]:
        """A token for each row of logits, float32 [R, vocab]; NONE_LEFT or NOT_FINITE where there is none.

        A row's token depends on its own logits and draw alone.
        """
        if len(self._rows) != len(draws):
            self._rows, self._tokens = np.arange(len(draws)), np.empty(len(draws), dtype=np.int64)
        self._sampler.choose(logits, self._rows, draws, self._tokens)
        chosen: list[int] = self._tokens.tolist()
        return chosen

    def token_logprobs(
        self, logits: Scores, rows: ReadOnlyList[int], tokens: ReadOnlyList[int], counts: ReadOnlyList[int]
    ) -> list[TokenLogprobs]:
        """What `armillary.runtime.torch_sampler.token_logprobs` tells of these rows of logits."""
        tops = min(max(counts, default=0), logits.shape[1])
        chosen = np.empty(len(rows), dtype=np.float32)
        values, ids = np.empty((len(rows), tops), dtype=np.float32), np.empty((len(rows), tops), dtype=np.int64)
        self._sampler.logprobs(
            logits,
            np.asarray(rows, dtype=np.int64),
            np.asarray(tokens, dtype=np.int64),
            chosen,
            values,
            ids,
        )
        return [
            TokenLogprobs(logprob, list(zip(row_ids[:count], row_values[:count], strict=True)))
            for logprob, row_ids, row_values, count in zip(
                chosen.tolist(), ids.tolist(), values.tolist(), counts, strict=True
            )
        ]
