"""What the scheduler of an engine is told, real or simulated."""

from __future__ import annotations

from armillary.core.config import SchedulerConfig
from armillary.deployment.engine import EngineSettings
from armillary.errors import ArmillaryError, Code
from armillary.runtime.memory_plan import Value


def choose_step(settings: EngineSettings) -> tuple[Value, Value]:
    """max_step_tokens and max_running, the one at least the other.

    Raises ArmillaryError: INVALID_DEPLOYMENT where both are set and it is not.
    """
    given = settings.model_fields_set
    steps, running = settings.max_step_tokens, settings.max_running
    step_reason, running_reason = ("set" if name in given else "default" for name in ("max_step_tokens", "max_running"))
    if steps < running:
        if "max_running" not in given:
            running, running_reason = steps, "as many as a step has tokens"
        elif "max_step_tokens" not in given:
            steps, step_reason = running, "one token for each running sequence"
        else:
            raise ArmillaryError(
                Code.INVALID_DEPLOYMENT,
                f"max_step_tokens must be at least max_running, given {steps} and {running}: every running sequence "
                "needs one token of each step",
                "max_step_tokens",
            )
    return Value("max_step_tokens", steps, step_reason), Value("max_running", running, running_reason)


def scheduler_config(settings: EngineSettings, num_blocks: int, max_context: int) -> SchedulerConfig:
    """Of an engine with so many KV blocks and positions of a sequence.

    Raises ArmillaryError: as `choose_step`.
    """
    step_tokens, running = choose_step(settings)
    return SchedulerConfig(
        num_blocks=num_blocks,
        max_context=max_context,
        block_size=settings.block_size,
        max_step_tokens=int(step_tokens.value),
        max_chunk_tokens=settings.max_chunk_tokens,
        max_running=int(running.value),
        max_waiting=settings.max_waiting,
        max_waiting_tokens=settings.max_waiting_tokens,
        order=settings.order,
        starvation_s=settings.starvation_s,
        prefix_cache=settings.prefix_cache,
    )
