"""From a checkpoint to a model that torch computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from armillary.models.checkpoint import DTYPES, load_decoder
from armillary.models.decoder import Decoder
from armillary.models.encoder import Encoder
from armillary.models.encoder_checkpoint import load_encoder
from armillary.models.encoder_spec import EncoderSpec
from armillary.models.spec import ModelSpec
from armillary.runtime.memory_plan import MemoryPlan
from armillary.runtime.stopwatch import Stopwatch
from armillary.runtime.threads import use_threads


def load_torch(
    folder: Path,
    spec: ModelSpec | EncoderSpec,
    plan: MemoryPlan,
    watch: Stopwatch,
    on_bytes: Callable[[int], None],
) -> Decoder | Encoder:
    """The model that the plan describes.

    Raises ArmillaryError: INVALID_CHECKPOINT for missing, unexpected or misshapen tensors, by name.
    """
    use_threads(plan.threads)
    dtype = DTYPES[plan.dtype]
    model: Decoder | Encoder
    if isinstance(spec, EncoderSpec):
        model = load_encoder(folder, spec, dtype, on_bytes).eval()
    else:
        model = load_decoder(folder, dtype, spec, on_bytes).eval()
    watch.begin("packing")
    model.settle()
    return model
