"""What a scheduler has counted since it was made."""

from __future__ import annotations

from dataclasses import dataclass, field

from armillary.core.request import FinishReason


@dataclass(slots=True)
class SchedulerStats:
    """Monotone counters. Requests and sequences are counted apart: a request with n=3 has three."""

    submitted: int = 0
    """Requests accepted."""
    refused: int = 0
    """Requests refused at submission."""
    finished: dict[FinishReason, int] = field(default_factory=lambda: dict.fromkeys(FinishReason, 0))
    """Sequences ended, by reason."""
    steps: int = 0
    computed_tokens: int = 0
    """Token positions computed, recomputation after preemption included."""
    generated_tokens: int = 0
    forced_tokens: int = 0
    """How many of those came without a step of their own, because nothing else could have come."""
    prefix_query_tokens: int = 0
    """Known tokens of sequences at the moment of their admission."""
    prefix_hit_tokens: int = 0
    """How many of those the prefix index supplied."""
    imported_tokens: int = 0
    """Known tokens whose keys and values came with their requests."""
    preemptions: int = 0
    evictions: int = 0
    """Blocks of the prefix index that were given up for another use."""
    copies: int = 0
    """Blocks copied because a sibling shared them."""
    max_running: int = 0
    """Most sequences that ran in one step."""
    max_tokens: int = 0
    """Most tokens that one step computed, or would have without those that sharing within it spared."""

    def reached(self, running: int, tokens: int) -> None:
        """Note a step with so many sequences and tokens."""
        self.max_running = max(self.max_running, running)
        self.max_tokens = max(self.max_tokens, tokens)
