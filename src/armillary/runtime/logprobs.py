"""Log-probabilities of tokens under the model's own distribution."""

from __future__ import annotations

from collections.abc import Sequence as ReadOnlyList

import torch
from torch import Tensor

from armillary.runtime.sampling import MAX_LOGPROBS, TokenLogprobs


def token_logprobs(logits: Tensor, tokens: ReadOnlyList[int], counts: ReadOnlyList[int]) -> list[TokenLogprobs]:
    """What each row's model thought of that row's token.

    logits float32 [R, vocab], untouched by penalties or temperature; `counts` says how many alternatives
    each row lists. A row's numbers do not depend on the other rows.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    if not any(counts):
        return [TokenLogprobs(value, []) for value in chosen]
    # Always the same count, so that the order among equals is the same whoever asks beside.
    values, ids = torch.topk(logprobs, min(MAX_LOGPROBS, logits.shape[1]), dim=-1)
    return [
        TokenLogprobs(value, list(zip(row_ids[:count], row_values[:count], strict=True)))
        for value, row_ids, row_values, count in zip(chosen, ids.tolist(), values.tolist(), counts, strict=True)
    ]


class PromptLogprobs:
    """The logprobs of one prompt, gathered chunk by chunk.

    `entries` has one item per prompt token; None for the first, which nothing predicts.
    """

    def __init__(self, length: int) -> None:
        self.entries: list[TokenLogprobs | None] = [None] * length
        self.delivered = False

    def put(self, position: int, found: list[TokenLogprobs]) -> None:
        """Take in what the model thought of the tokens from `position` on."""
        self.entries[position : position + len(found)] = found
