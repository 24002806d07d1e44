"""What a scheduler is told once, when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits and policies of one scheduler.

    Attributes:
        num_blocks: KV blocks in the pool.
        max_context: most tokens (prompt and generated) of one sequence.
        block_size: token positions per block.
        max_step_tokens: most tokens computed in one step; at least `max_running`.
        max_chunk_tokens: most tokens of one sequence in one step; None for no limit but the step's.
        max_running: most sequences that hold blocks at once.
        max_waiting: most requests that may wait, preempted ones included; one more is refused.
        max_waiting_tokens: most tokens (prompts, and what preempted ones have generated) that may wait; a
            request that would exceed it is refused, unless nothing waits. None for no limit.
        order: a name in `armillary.core.order.ORDERS`.
        starvation_s: seconds after which orderings other than fcfs serve a request by its age.
        prefix_cache: whether computed blocks are shared between requests with equal prefixes.
        whole_prompts: whether a prompt enters a step whole or waits for the next one, as models need that look
            at a text from both sides. Needs `max_step_tokens` of at least `max_context`, and no `max_chunk_tokens`.
        preempt_every: force a preemption every so many steps (0: never). A test aid that makes a rare
            state common; results must not change with it.
    """

    num_blocks: int
    max_context: int
    block_size: int = 16
    max_step_tokens: int = 512
    max_chunk_tokens: int | None = None
    max_running: int = 64
    max_waiting: int = 1024
    max_waiting_tokens: int | None = None
    order: str = "fcfs"
    starvation_s: float = 30.0
    prefix_cache: bool = True
    whole_prompts: bool = False
    preempt_every: int = 0

    def __post_init__(self) -> None:
        for name in ("num_blocks", "max_context", "block_size", "max_running", "max_waiting"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, given {getattr(self, name)}")
        if self.max_step_tokens < self.max_running:
            raise ValueError(
                f"max_step_tokens must be at least max_running, given {self.max_step_tokens} and "
                f"{self.max_running}: every running sequence needs one token of each step"
            )
        if self.max_chunk_tokens is not None and self.max_chunk_tokens < 1:
            raise ValueError(f"max_chunk_tokens must be at least 1, given {self.max_chunk_tokens}")
        if self.max_waiting_tokens is not None and self.max_waiting_tokens < 1:
            raise ValueError(f"max_waiting_tokens must be at least 1, given {self.max_waiting_tokens}")
        if not 0 < self.starvation_s < inf:
            raise ValueError(f"starvation_s must be above 0 and finite, given {self.starvation_s}")
        if self.whole_prompts and (self.max_chunk_tokens is not None or self.max_step_tokens < self.max_context):
            raise ValueError(
                f"whole_prompts needs max_step_tokens of at least max_context and no max_chunk_tokens, given "
                f"{self.max_step_tokens}, {self.max_context} and {self.max_chunk_tokens}"
            )
        if self.preempt_every < 0:
            raise ValueError(f"preempt_every must be 0 or more, given {self.preempt_every}")

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold the keys and values of so many tokens."""
        return -(-tokens // self.block_size)
