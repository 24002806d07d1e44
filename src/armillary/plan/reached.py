"""Limits that simulations never reached: with others in their place they would have been the same, step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from armillary.core.config import SchedulerConfig
from armillary.twin.fleet_result import FleetResult


@dataclass(frozen=True, slots=True)
class Reached:
    """How far simulations came to the limits of a step.

    Attributes:
        running, tokens: most of a step on any replica, as of `SchedulerStats`.
        gave_way: whether a sequence ever had to or a replica failed: what was chosen by then is not known.
    """

    running: int = 0
    tokens: int = 0
    gave_way: bool = False

    def with_(self, run: FleetResult) -> Reached:
        """And in another simulation."""
        each = [use.counts for use in run.replicas]
        return Reached(
            max(self.running, *(counts.max_running for counts in each)),
            max(self.tokens, *(counts.max_tokens for counts in each)),
            self.gave_way or any(use.failures or use.counts.preemptions for use in run.replicas),
        )

    def tells(self, config: SchedulerConfig, other: SchedulerConfig) -> bool:
        """Whether another configuration would have chosen the same steps: it differs in nothing but limits that
        were not reached and would not have been.

        A step with fewer tokens than it may have is one from which nothing was left out, and where fewer sequences run
        than may, nobody waits for another to end. A prompt that must be whole does wait for a step with room for it.
        """
        if self.gave_way or config.whole_prompts:
            return False
        running, tokens = config.max_running, config.max_step_tokens
        pairs = ((running, other.max_running, self.running), (tokens, other.max_step_tokens, self.tokens))
        if any(mine != its and most >= min(mine, its) for mine, its, most in pairs):
            return False
        return replace(other, max_running=running, max_step_tokens=tokens) == config
