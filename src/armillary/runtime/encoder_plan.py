"""The memory plan of an encoder: weights and the room for one step; nothing is kept between steps."""

from __future__ import annotations

from dataclasses import replace

from armillary.deployment.engine import EngineSettings
from armillary.errors import ArmillaryError, Code
from armillary.models.encoder_spec import EncoderSpec
from armillary.models.quantized import FLOAT_BYTES
from armillary.runtime.machine import Machine
from armillary.runtime.memory_plan import SCORE_BYTES, MemoryPlan, Value
from armillary.runtime.native_plan import refuse_without_native
from armillary.runtime.plan import HEADROOM_SHARE, choose_dtype, refuse_too_large
from armillary.runtime.scheduling import choose_step

WITHOUT_MEANING = (
    "kv_blocks", "kv_memory", "kv_dtype", "block_size", "max_chunk_tokens", "prefix_cache", "packed_cache"
)  # fmt: skip
"""Settings that an encoder cannot obey."""


def make_encoder_plan(spec: EncoderSpec, settings: EngineSettings, machine: Machine, promised: int = 0) -> MemoryPlan:
    """Work the plan out. Allocates nothing.

    A text enters a step whole, so a step holds at least `max_context` tokens. What the scheduler counts as
    blocks is one block for each text, as large as a text may be, and stands for no memory.

    Args:
        promised: bytes that the machine still shows as available and other engines may take at any time.

    Raises:
        ArmillaryError: MEMORY with the largest model that would fit; INVALID_DEPLOYMENT for settings that an
            encoder cannot obey or that contradict each other or the model.
    """
    for name in WITHOUT_MEANING:
        if name in settings.model_fields_set and getattr(settings, name) not in (None, False, "auto"):
            raise ArmillaryError(
                Code.INVALID_DEPLOYMENT,
                f"{name} must be left unset for {spec.family}, given {getattr(settings, name)}: an encoder reads a "
                "text whole and keeps no keys and values; where other models of the deployment need it, set it in "
                "their own `engine`",
                name,
            )
    refuse_without_native(settings, f"encoders such as {spec.family} are computed by torch")
    machine = replace(machine, available=max(0, machine.available - promised))
    headroom = int(machine.available * HEADROOM_SHARE)
    dtype = choose_dtype(spec, settings, machine)
    width = FLOAT_BYTES[str(dtype.value)]
    weights = spec.num_parameters() * width
    context = _context(spec, settings)
    steps, running = choose_step(settings)
    if int(steps.value) < int(context.value):
        steps = Value("max_step_tokens", context.value, "one text of max_context tokens")
    workspace = encoder_workspace_bytes(spec, int(steps.value), width)
    if weights + workspace > machine.available - headroom:
        refuse_too_large(spec, dtype, weights, workspace, machine, machine.available - headroom, promised)
    threads = Value(
        "threads",
        settings.threads or machine.threads,
        "set" if settings.threads else f"one per physical core that may be used, of {machine.physical_cores}",
    )
    return MemoryPlan(
        dtype=str(dtype.value),
        # Admission leaves one block free for each running sequence; a text needs one for itself.
        num_blocks=2 * int(running.value),
        block_size=int(context.value),
        max_context=int(context.value),
        max_step_tokens=int(steps.value),
        max_running=int(running.value),
        threads=int(threads.value),
        available=machine.available,
        weights=weights,
        kv=0,
        workspace=workspace,
        headroom=headroom,
        values=(dtype, context, steps, running, threads),
        bandwidth=None,
        speed=(),
        promised=promised,
    )


def encoder_workspace_bytes(spec: EncoderSpec, max_step_tokens: int, dtype_bytes: int) -> int:
    """What computing one step takes beside the weights: activations and the copies that attention makes."""
    widest = max(8 * spec.hidden_size, 2 * spec.intermediate + 3 * spec.hidden_size)
    return max_step_tokens * widest * max(4, dtype_bytes) + SCORE_BYTES


def _context(spec: EncoderSpec, settings: EngineSettings) -> Value:
    given = settings.model_fields_set
    if settings.max_context is not None:
        if settings.max_context > spec.max_context:
            raise ArmillaryError(
                Code.INVALID_DEPLOYMENT,
                f"max_context must be at most {spec.max_context}, what the model was made for, given "
                f"{settings.max_context}",
                "max_context",
            )
        if "max_step_tokens" in given and settings.max_step_tokens < settings.max_context:
            raise ArmillaryError(
                Code.INVALID_DEPLOYMENT,
                f"max_step_tokens must be at least max_context, given {settings.max_step_tokens} and "
                f"{settings.max_context}: an encoder reads a text whole",
                "max_step_tokens",
            )
        return Value("max_context", settings.max_context, "set")
    if "max_step_tokens" in given and settings.max_step_tokens < spec.max_context:
        return Value("max_context", settings.max_step_tokens, "what one step holds: a text is read whole")
    return Value("max_context", spec.max_context, "what the model was made for")
