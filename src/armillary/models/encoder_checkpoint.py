"""Loading an encoder's weights from a folder in the layout of Hugging Face."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from armillary.errors import ArmillaryError, Code
from armillary.models.checkpoint import DTYPES, read_parts
from armillary.models.encoder import Encoder
from armillary.models.encoder_families import ENCODERS, UNREAD
from armillary.models.encoder_spec import EncoderSpec
from armillary.models.parts import Part, tensor_files


def load_encoder(
    folder: Path,
    spec: EncoderSpec,
    dtype: torch.dtype | None = None,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Encoder:
    """Load an encoder for inference; `on_bytes` is told how many bytes each piece of the weights fills.

    Names of tensors may carry the family's prefix, as models with a head have it, and the first releases'
    `gamma` and `beta` for the weight and bias of a norm.

    Raises:
        ArmillaryError: INVALID_CHECKPOINT for missing, unexpected or misshapen tensors, by name.
    """
    files = tensor_files(folder)
    encoder = Encoder(spec, dtype or DTYPES[spec.dtype])
    parameters = dict(encoder.named_parameters())
    found = {_plain(name, spec): name for name in files}
    parts = list(_layout(spec))
    missing = [part.name for part in parts if part.name not in found]
    if missing:
        _invalid(f"{folder} must contain tensor {missing[0]}, and does not ({len(missing)} are missing)")
    wanted = {part.name for part in parts}
    for name in found:
        if name not in wanted and not UNREAD.match(name):
            _invalid(f"{folder} must not contain tensor {found[name]}, which config.json gives no place to")
    by_file: dict[str, list[Part]] = {}
    for part in parts:
        real = found[part.name]
        by_file.setdefault(files[real], []).append(Part(real, part.parameter, part.start, part.rows))
    with torch.no_grad():
        for file, own in sorted(by_file.items()):
            read_parts(folder / file, own, parameters, on_bytes)
    return encoder


def _plain(name: str, spec: EncoderSpec) -> str:
    """A tensor's name without prefix, in today's spelling."""
    name = name.removeprefix(ENCODERS[spec.family].prefix + ".")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _layout(spec: EncoderSpec) -> Iterator[Part]:
    """Every tensor that is read, under its plain name."""
    family = ENCODERS[spec.family]
    hidden, inner = spec.hidden_size, spec.intermediate
    sizes = {"embed": spec.vocab_size, "positions": spec.positions, "types": spec.types}
    for parameter, tensor in family.tables.items():
        yield Part(tensor, parameter, 0, sizes.get(parameter, hidden))
    rows = {"up": inner, "up_bias": inner}
    for index in range(spec.num_layers):
        for parameter, tensors in family.layer.items():
            size = rows.get(parameter, hidden)
            for place, tensor in enumerate(tensors):
                yield Part(f"{family.layers}.{index}.{tensor}", f"layers.{index}.{parameter}", place * size, size)
    if spec.scores:
        for parameter, tensor in family.head.items():
            yield Part(tensor, parameter, 0, 1 if parameter.startswith("score") else hidden)


def _invalid(message: str) -> None:
    raise ArmillaryError(Code.INVALID_CHECKPOINT, message, "model")
