"""From a checkpoint to a decoder of the native kernels, by way of the cache of packed weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from armillary.deployment.engine import EngineSettings
from armillary.kernels import native
from armillary.models.native import NativeDecoder
from armillary.models.packed_cache import PackedCache, worth_keeping
from armillary.models.packed_weights import PackedWeights
from armillary.models.parameters import Parameter
from armillary.models.quantized import Format
from armillary.models.spec import ModelSpec
from armillary.models.weights import CheckpointWeights
from armillary.runtime.memory_plan import MemoryPlan
from armillary.runtime.native_plan import Kernels, native_layout, read_kernels
from armillary.runtime.stopwatch import Stopwatch


def kernels_for(folder: Path, spec: ModelSpec, held: object | None) -> Kernels:
    """What will compute this model.

    Args:
        held: weights that are in memory already; they can only be computed with as they are.

    Raises ArmillaryError: INVALID_DEPLOYMENT where the environment asks for kernels that are not there; of a
        checkpoint that is quantised, whose tensors the plan depends on, what `CheckpointWeights` raises.
    """
    kernels = read_kernels()
    if isinstance(held, NativeDecoder):
        forms = {entry.parameter.key: entry.form for entry in held.weights.layout.entries}

        def kept(matrix: Parameter) -> Format | None:
            return forms[matrix.key]

        return Kernels(held.path, kernels.reason, kept)
    if held is not None:
        return Kernels(None, kernels.reason if kernels.path is None else "the weights are held for torch")
    if kernels.path is None or spec.quantized is None:
        return kernels
    source = CheckpointWeights(folder, spec)
    _, lost = source.integer_matrices
    notes = f"; {lost} matrices dequantised to 16 bits, whose integers the kernels do not take" if lost else ""
    return replace(kernels, kept=source.kept, notes=notes)


def load_native(
    folder: Path,
    spec: ModelSpec,
    settings: EngineSettings,
    plan: MemoryPlan,
    kernels: Kernels,
    watch: Stopwatch,
    on_bytes: Callable[[int], None],
) -> NativeDecoder:
    """The decoder that the plan describes.

    Raises ArmillaryError: INVALID_CHECKPOINT for missing, unexpected or misshapen tensors, by name.
    """
    source = CheckpointWeights(folder, spec)
    layout = native_layout(spec, plan.dtype, settings, kernels)
    cache = PackedCache(source, layout) if settings.packed_cache and worth_keeping(layout) else None
    found = None if cache is None else cache.open()
    if found is not None:
        on_bytes(layout.size)
        return NativeDecoder(spec, PackedWeights(layout, found), plan.dtype)
    weights = PackedWeights(layout, native.aligned(layout.size))
    weights.pack(source, plan.threads, on_bytes)
    if cache is not None:
        watch.begin("packed cache")
        cache.write(weights.memory)
    return NativeDecoder(spec, weights, plan.dtype)
