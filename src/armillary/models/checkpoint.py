"""Checkpoints in the layout of Hugging Face: config.json, generation_config.json, *.safetensors.

Several tensors of a checkpoint may make up one parameter of ours (query, key and value; gate and up; the
experts of a layer). Loading copies each tensor to its place and saving cuts them out again under the family's
names, so that what is written is an ordinary checkpoint of that family.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from armillary.models.config import read_config
from armillary.models.decoder import Decoder
from armillary.models.parts import INDEX, SINGLE, Part, check_names, invalid, layout, named_parts, opened, tensor_files
from armillary.models.spec import ModelSpec

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_MAPPED_BYTES = 64 << 20
_READ_DTYPES = {"F32": 4, "BF16": 2, "F16": 2}


def load_decoder(
    folder: Path,
    dtype: torch.dtype | None = None,
    spec: ModelSpec | None = None,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Decoder:
    """Load a model for inference or further training.

    Args:
        folder: a model folder; see `read_config`.
        dtype: element type to hold the weights in; the checkpoint's own where None.
        spec: the folder's spec, where the caller has changed something about it (its context).
        on_bytes: is told how many bytes, counted in `dtype`, each piece of the weights fills.

    Raises ArmillaryError: what `read_config` raises; INVALID_CHECKPOINT for missing, unexpected or misshapen
    tensors, by name.
    """
    spec = spec or read_config(folder)
    if spec.quantized is not None:
        from armillary.models.decoder_weights import filled_decoder
        from armillary.models.weights import CheckpointWeights

        return filled_decoder(CheckpointWeights(folder, spec), dtype or DTYPES[spec.dtype], on_bytes)
    files = tensor_files(folder)
    decoder = Decoder(spec, dtype or DTYPES[spec.dtype])
    parameters = dict(decoder.named_parameters())
    parts = {part.name: part for part in named_parts(spec, files)}
    check_names(folder, set(parts), files, spec)
    with torch.no_grad():
        for file in sorted(set(files.values())):
            wanted = [parts[name] for name in files if files[name] == file and name in parts]
            read_parts(folder / file, wanted, parameters, on_bytes)
    return decoder


def read_parts(
    path: Path,
    parts: Sequence[Part],
    parameters: Mapping[str, Tensor],
    on_bytes: Callable[[int], None] = lambda count: None,
) -> None:
    """Copy the tensors of one file to their places, and tell `on_bytes` of every piece.

    The file is mapped, and pages of a mapping that were read count as memory of this process until it is
    unmapped; so it is mapped anew after every `_MAPPED_BYTES`, and large tensors are read in pieces.
    """
    reader, seen = opened(path, "pt"), 0
    for part in parts:
        target = part.of(parameters[part.parameter])
        piece = reader.get_slice(part.name)
        shape = list(piece.get_shape())
        if shape != list(target.shape):
            invalid(f"tensor {part.name} must have shape {list(target.shape)}, given {shape}")
        if piece.get_dtype() not in _READ_DTYPES:
            known = ", ".join(_READ_DTYPES)
            invalid(f"tensor {part.name} must be of element type {known}, given {piece.get_dtype()}")
        row_bytes = _READ_DTYPES[piece.get_dtype()] * target[0].numel()
        step = max(1, _MAPPED_BYTES // row_bytes)
        for start in range(0, len(target), step):
            count = min(step, len(target) - start)
            if seen and seen + count * row_bytes > _MAPPED_BYTES:
                del piece, reader
                reader, seen = opened(path, "pt"), 0
                piece = reader.get_slice(part.name)
            target[start : start + count].copy_(piece[start : start + count])
            seen += count * row_bytes
            on_bytes(target[start : start + count].nbytes)


def save_decoder(decoder: Decoder, folder: Path, shard_bytes: int = 5 << 30) -> None:
    """Write config.json, generation_config.json and the weights, in the family's own layout.

    Weights keep their element type; more than `shard_bytes` of them are split over several files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = dict(decoder.named_parameters())
    shards: list[list[Part]] = [[]]
    filled = 0
    for part in layout(decoder.spec):
        view = part.of(parameters[part.parameter])
        size = view.numel() * view.element_size()
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(part)
        filled += size
    where: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {part.name: _cut(part, parameters, decoder.dtype) for part in shard}
        save_file(tensors, folder / f"{file}.partial", metadata={"format": "pt"})
        os.replace(folder / f"{file}.partial", folder / file)
        where |= dict.fromkeys(tensors, file)
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if len(shards) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    _save_configs(decoder, folder)


def _cut(part: Part, parameters: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The tensor as it is written: whole, and in the checkpoint's one element type."""
    return part.of(parameters[part.parameter]).detach().to("cpu", dtype, copy=True).contiguous()


def checkpoint_bytes(folder: Path, dtype: torch.dtype | None = None) -> int:
    """Bytes of memory that the weights take once loaded as `dtype`. Reads config.json only."""
    spec = read_config(folder)
    return spec.num_parameters() * (dtype or DTYPES[spec.dtype]).itemsize


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object, under a temporary name first."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _save_configs(decoder: Decoder, folder: Path) -> None:
    spec = decoder.spec
    # What is written is not quantised, whatever it was read from.
    config = {k: value for k, value in spec.config.items() if k not in ("dtype", "torch_dtype", "quantization_config")}
    config["torch_dtype"] = str(decoder.dtype).removeprefix("torch.")
    write_json(folder / "config.json", config)
    generation: dict[str, Any] = dict(spec.sampling_defaults)
    if spec.eos_token_ids:
        several = len(spec.eos_token_ids) > 1
        generation["eos_token_id"] = list(spec.eos_token_ids) if several else spec.eos_token_ids[0]
    for name in ("bos_token_id", "pad_token_id"):
        if getattr(spec, name) is not None:
            generation[name] = getattr(spec, name)
    write_json(folder / "generation_config.json", generation)
