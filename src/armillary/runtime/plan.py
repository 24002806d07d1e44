"""The memory plan: what will be allocated and why, worked out and checked before anything is.

Values that the deployment sets are respected or refused; the others are chosen from what the machine has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NoReturn

from armillary.deployment.engine import EngineSettings
from armillary.deployment.size import format_size
from armillary.errors import ArmillaryError, Code
from armillary.models.encoder_spec import EncoderSpec
from armillary.models.quantized import FLOAT_BYTES, INTEGERS
from armillary.models.spec import ModelSpec
from armillary.runtime.doctor import active_parameters
from armillary.runtime.machine import Machine
from armillary.runtime.memory_plan import ESTIMATE_CONTEXT, GROUP_BYTES, SCORE_BYTES, MemoryPlan, SpeedCeiling, Value
from armillary.runtime.native_plan import (
    TORCH,
    Kernels,
    formats_line,
    native_block_bytes,
    native_dtype,
    native_layout,
    native_workspace_bytes,
    refuse_without_native,
    undivided,
)
from armillary.runtime.scheduling import choose_step

HEADROOM_SHARE = 0.1
"""Part of the available memory that is left to everything else: text, requests, other programs, error in this plan."""
KV_SHARE = 0.6
"""Part of what weights and workspace leave that the KV pool may take unasked."""
COMFORTABLE_SHARE = 0.4
"""Part of the available memory up to which weights are widened to float32 where that is faster."""


def make_plan(
    spec: ModelSpec,
    settings: EngineSettings,
    machine: Machine,
    bandwidth: float | None = None,
    promised: int = 0,
    kernels: Kernels = TORCH,
) -> MemoryPlan:
    """Work the plan out. Allocates nothing.

    Args:
        bandwidth: bytes per second, for the speed estimate.
        kernels: what will compute.
        promised: bytes that the machine still shows as available and other engines may take at any time.

    Raises:
        ArmillaryError: MEMORY with the largest number that would work; INVALID_DEPLOYMENT for values that
            contradict each other or the model.
    """
    given = settings.model_fields_set
    machine = replace(machine, available=max(0, machine.available - promised))
    headroom = int(machine.available * HEADROOM_SHARE)
    budget = machine.available - headroom
    steps, running = choose_step(settings)
    threads = Value(
        "threads",
        settings.threads or machine.threads,
        "set" if settings.threads else f"one per physical core that may be used, of {machine.physical_cores}",
    )
    sizes = _native_sizes if kernels.path is not None else _torch_sizes
    found = sizes(spec, settings, machine, kernels, (int(steps.value), int(running.value), int(threads.value)))
    dtype, weights, workspace, block_bytes = found.dtype, found.weights, found.workspace, found.block_bytes
    room = budget - weights - workspace
    # One block more than the pool has is allocated for torch: the one that tables are padded with.
    most = room // block_bytes - 1
    if most < 1:
        refuse_too_large(spec, dtype, weights, workspace, machine, budget, promised)
    blocks = _blocks(spec, settings, int(running.value), most, block_bytes, room)
    context = _context(spec, settings, int(blocks.value), most)
    block = Value("block_size", settings.block_size, "set" if "block_size" in given else "default")
    return MemoryPlan(
        dtype=str(dtype.value),
        num_blocks=int(blocks.value),
        block_size=settings.block_size,
        max_context=int(context.value),
        max_step_tokens=int(steps.value),
        max_running=int(running.value),
        threads=int(threads.value),
        available=machine.available,
        weights=weights,
        kv=(int(blocks.value) + found.extra_blocks) * block_bytes,
        workspace=workspace,
        headroom=headroom,
        values=(found.kernels, dtype, found.kv_dtype, blocks, block, context, steps, running, threads),
        bandwidth=bandwidth,
        speed=_speed(found, int(running.value), int(context.value), bandwidth),
        promised=promised,
        kv_dtype=str(found.kv_dtype.value),
        formats=found.formats,
        kernels=str(found.kernels.value),
    )


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What follows from the model and from what computes it, in bytes.

    Attributes:
        active: weights that one token passes through.
        kv_token: keys and values of one position.
        extra_blocks: allocated beside the pool.
    """

    kernels: Value
    dtype: Value
    kv_dtype: Value
    weights: int
    active: int
    workspace: int
    block_bytes: int
    kv_token: int
    extra_blocks: int
    formats: str = ""


def _torch_sizes(
    spec: ModelSpec, settings: EngineSettings, machine: Machine, kernels: Kernels, step: tuple[int, int, int]
) -> _Sizes:
    refuse_without_native(settings, kernels.reason)
    dtype = choose_dtype(spec, settings, machine)
    width = FLOAT_BYTES[str(dtype.value)]
    kv_dtype = _kv_dtype(settings, str(dtype.value))
    kv_width = FLOAT_BYTES[str(kv_dtype.value)]
    return _Sizes(
        kernels=Value("kernels", "torch", kernels.reason),
        dtype=dtype,
        kv_dtype=kv_dtype,
        weights=spec.num_parameters() * width,
        active=active_parameters(spec) * width,
        workspace=workspace_bytes(spec, step[0], step[1], width),
        block_bytes=spec.kv_bytes_per_token(kv_width) * settings.block_size,
        kv_token=spec.kv_bytes_per_token(kv_width),
        extra_blocks=1,
    )


def _native_sizes(
    spec: ModelSpec, settings: EngineSettings, machine: Machine, kernels: Kernels, step: tuple[int, int, int]
) -> _Sizes:
    path = str(kernels.path)
    name, reason = native_dtype(spec, settings, kernels)
    layout = native_layout(spec, name, settings, kernels)
    if name == "int4" and spec.quantized is None:
        group = settings.quantization_group or 32
        reason += f"; groups of {group}" + ("" if settings.quantization_group else " by default")
        if count := undivided(layout, group):
            reason += f", {count} matrices in int8 because {group} does not divide their width"
    whole = name not in INTEGERS
    kv_dtype = _kv_dtype(settings, name if whole else spec.dtype, "as the weights" if whole else "as in the checkpoint")
    block_bytes = native_block_bytes(spec, path, str(kv_dtype.value), settings.block_size)
    idle = sum(
        entry.size * (1 - layer.mlp.experts_per_token / layer.mlp.experts)
        for entry in layout.entries
        if entry.parameter.expert is not None
        for layer in [spec.layers[int(entry.parameter.name.split(".")[1])]]
    )
    unread = sum(entry.size for entry in layout.entries if entry.parameter.name == "embed" and not spec.tied)
    return _Sizes(
        kernels=Value("kernels", path, kernels.reason),
        dtype=Value("dtype", name, reason),
        kv_dtype=kv_dtype,
        weights=layout.size,
        active=int(layout.size - unread - idle),
        workspace=native_workspace_bytes(spec, layout, *step),
        block_bytes=block_bytes,
        kv_token=-(-block_bytes // settings.block_size),
        extra_blocks=0,
        formats=formats_line(layout),
    )


def _kv_dtype(settings: EngineSettings, auto: str, why: str = "as the weights") -> Value:
    """The number format of keys and values."""
    if settings.kv_dtype != "auto":
        return Value("kv_dtype", settings.kv_dtype, "set")
    return Value("kv_dtype", auto, why)


def workspace_bytes(spec: ModelSpec, max_step_tokens: int, max_running: int, dtype_bytes: int) -> int:
    """What computing one step takes beside weights and KV: activations, logits and the gathering of attention."""
    widest = 0
    for layer in spec.layers:
        attention, mlp = layer.attention, layer.mlp
        qkv = (attention.heads + 2 * attention.kv_heads) * attention.head_dim
        inner = mlp.intermediate * max(1, mlp.experts_per_token)
        # Products, their rotated or gated copies, and float32 intermediates of the norms.
        widest = max(widest, 3 * qkv + 4 * spec.hidden_size, 3 * inner + 4 * spec.hidden_size)
    activations = max_step_tokens * widest * max(4, dtype_bytes)
    # The logits, the copy that penalties and temperature change, and what drawing derives from it.
    logits = max_running * spec.vocab_size * 4 * 3
    attention_bytes = 2 * GROUP_BYTES + 2 * SCORE_BYTES
    return activations + logits + attention_bytes


def choose_dtype(spec: ModelSpec | EncoderSpec, settings: EngineSettings, machine: Machine) -> Value:
    """The element type of the weights, and why."""
    if settings.dtype != "auto":
        return Value("dtype", settings.dtype, "set")
    if spec.dtype == "float32" or machine.native_bf16:
        return Value("dtype", spec.dtype, "as in the checkpoint")
    wide = spec.num_parameters() * FLOAT_BYTES["float32"]
    if wide <= machine.available * COMFORTABLE_SHARE:
        return Value(
            "dtype",
            "float32",
            f"this CPU has no native {spec.dtype}, and {format_size(wide)} of weights fit comfortably",
        )
    return Value(
        "dtype",
        spec.dtype,
        f"as in the checkpoint: float32 would be faster here, but {format_size(wide)} of weights leave too little",
    )


def _blocks(spec: ModelSpec, settings: EngineSettings, running: int, most: int, block_bytes: int, room: int) -> Value:
    size = settings.block_size
    if settings.kv_blocks is not None:
        if settings.kv_blocks > most:
            _refuse("kv_blocks", settings.kv_blocks, most, f"{format_size(room)} are left for KV", block_bytes)
        return Value("kv_blocks", settings.kv_blocks, "set")
    if settings.kv_memory is not None:
        blocks = settings.kv_memory // block_bytes - 1
        if blocks < 1:
            raise ArmillaryError(
                Code.MEMORY,
                f"kv_memory must be at least {format_size(2 * block_bytes)} (two blocks of {size} tokens), given "
                f"{format_size(settings.kv_memory)}",
                "kv_memory",
            )
        if blocks > most:
            raise ArmillaryError(
                Code.MEMORY,
                f"kv_memory must be at most {format_size((most + 1) * block_bytes)}, given "
                f"{format_size(settings.kv_memory)}, so that weights, workspace and headroom fit beside it",
                "kv_memory",
            )
        return Value("kv_blocks", blocks, f"what {format_size(settings.kv_memory)} of kv_memory hold")
    longest = settings.max_context or spec.max_context
    useful = running * -(-longest // size)
    shared = max(1, int(room * KV_SHARE) // block_bytes - 1)
    needed = min(most, -(-settings.max_context // size)) if settings.max_context else 1
    if useful <= shared:
        return Value("kv_blocks", useful, f"{running} sequences of {longest} tokens at once")
    if needed > shared:
        return Value("kv_blocks", needed, f"one sequence of max_context = {settings.max_context} tokens")
    return Value("kv_blocks", shared, f"{KV_SHARE:.0%} of the {format_size(room)} that weights and workspace leave")


def _context(spec: ModelSpec, settings: EngineSettings, blocks: int, most: int) -> Value:
    held = blocks * settings.block_size
    if settings.max_context is None:
        if held < spec.max_context:
            return Value("max_context", held, f"what the KV pool holds, of the model's {spec.max_context}")
        return Value("max_context", spec.max_context, "what the model was made for")
    if settings.max_context > spec.max_context:
        raise ArmillaryError(
            Code.INVALID_DEPLOYMENT,
            f"max_context must be at most {spec.max_context}, what the model was made for, given "
            f"{settings.max_context}",
            "max_context",
        )
    if settings.max_context > held:
        pool = f"the KV pool of {blocks} blocks holds"
        if settings.kv_blocks is None and settings.kv_memory is None:
            pool = f"there is memory for {most} KV blocks, which hold"
        raise ArmillaryError(
            Code.MEMORY,
            f"max_context must be at most {held}, given {settings.max_context}: {pool} no more",
            "max_context",
        )
    return Value("max_context", settings.max_context, "set")


def refuse_too_large(
    spec: ModelSpec | EncoderSpec,
    dtype: Value,
    weights: int,
    workspace: int,
    machine: Machine,
    budget: int,
    promised: int,
) -> NoReturn:
    """Not even one block fits: say what would."""
    after = f" after the {format_size(promised)} promised to other models" if promised else ""
    message = (
        f"the model must fit into {format_size(budget)} ({format_size(machine.available)} available{after}, less "
        f"headroom), given {format_size(weights)} of {dtype.value} weights and {format_size(workspace)} of workspace"
    )
    narrow = spec.num_parameters() * FLOAT_BYTES["bfloat16"]
    if dtype.value == "float32" and narrow + workspace < budget:
        message += f"; dtype bfloat16 would need {format_size(narrow)} for the weights"
    else:
        largest = int((budget - workspace) * spec.num_parameters() / max(1, weights))
        message += f"; the largest model that fits as {dtype.value} has {max(0, largest) / 1e6:.0f} million parameters"
    raise ArmillaryError(Code.MEMORY, message, "dtype")


def _refuse(name: str, value: int, most: int, why: str, block_bytes: int) -> NoReturn:
    raise ArmillaryError(
        Code.MEMORY,
        f"{name} must be at most {most}, given {value}, which need {format_size((value + 1) * block_bytes)}: {why}",
        name,
    )


def _speed(found: _Sizes, running: int, max_context: int, bandwidth: float | None) -> tuple[SpeedCeiling, ...]:
    """Each decoding step reads the weights once and every sequence's keys and values once."""
    if bandwidth is None:
        return ()
    kv = found.kv_token * min(ESTIMATE_CONTEXT, max_context)
    ceilings = []
    for sequences in sorted({1, min(16, running)}):
        # Sequences go to different experts: at most all weights are read, at most once.
        size = min(found.weights, found.active * sequences) + kv * sequences
        ceilings.append(SpeedCeiling(sequences, size, sequences * bandwidth / size))
    return tuple(ceilings)
