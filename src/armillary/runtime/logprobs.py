"""Log-probabilities of a prompt's tokens under the model's own distribution."""

from __future__ import annotations

from armillary.runtime.sampling import TokenLogprobs


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
