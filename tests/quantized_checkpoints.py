"""Checkpoints as gptq and awq leave them, packed here one weight after another from the descriptions of their formats.

Nothing is shared with what reads them: integers are placed into words by their bit positions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
"""The output that each four bits of an awq word belong to, lowest bits first."""


@dataclass(frozen=True)
class Kind:
    """How a checkpoint is quantised."""

    method: str = "gptq"
    bits: int = 4
    group: int = 32
    symmetric: bool = True
    act_order: bool = False
    layout: str = "gptq"
    bias: bool = False

    @property
    def config(self) -> dict[str, Any]:
        if self.method == "awq":
            return {"quant_method": "awq", "bits": 4, "group_size": self.group, "zero_point": True, "version": "gemm"}
        return {"quant_method": "gptq", "bits": self.bits, "group_size": self.group, "sym": self.symmetric,
                "desc_act": self.act_order, "checkpoint_format": self.layout}  # fmt: skip


def words(values: np.ndarray, bits: int, order: list[int]) -> np.ndarray:
    """Rows of small integers, packed along the last axis: int32 [..., n * bits / 32]."""
    count = 32 // bits
    found = np.zeros((*values.shape[:-1], values.shape[-1] // count), np.uint32)
    for place in range(count):
        found |= values[..., order[place] :: count].astype(np.uint32) << np.uint32(bits * place)
    return found.view(np.int32)


def quantize(weight: np.ndarray, kind: Kind, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The tensors of a matrix [out, in], and float32 values that they stand for."""
    out, width = weight.shape
    group = width if kind.group < 0 else kind.group
    groups, top = width // group, (1 << kind.bits) - 1
    which = np.arange(width) // group
    if kind.act_order:
        which = rng.permutation(which)
    if not kind.symmetric:
        weight = weight.copy()
        weight[::5] = np.abs(weight[::5])  # whose zero points are 0
    scales = np.empty((groups, out), np.float16)
    zeros = np.empty((groups, out), np.int64)
    integers = np.empty((width, out), np.int64)
    for g in range(groups):
        part = weight[:, which == g]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if kind.symmetric:
            scales[g], zeros[g] = 2 * np.maximum(-low, high) / top, (top + 1) // 2
        else:
            scales[g] = (high - low) / top
            zeros[g] = np.clip(np.round(-low / scales[g].astype(np.float32)), 0, top)
        q = np.round(part / scales[g].astype(np.float32)[:, None]) + zeros[g][:, None]
        integers[which == g] = np.clip(q, 0, top).T
    values = (integers - zeros[which]).astype(np.float32) * scales[which].astype(np.float32)
    plain = list(range(32 // kind.bits))
    if kind.method == "awq":
        tensors = {"qweight": words(integers, 4, AWQ_ORDER), "qzeros": words(zeros, 4, AWQ_ORDER), "scales": scales}
        return tensors, values.T
    stored = words(zeros, kind.bits, plain)
    if kind.layout == "gptq":  # less one in each place, as whole words: GPTQModel's way from the second version
        stored = (stored.view(np.uint32) - np.uint32(sum(1 << kind.bits * place for place in plain))).view(np.int32)
    turned = np.ascontiguousarray(words(np.ascontiguousarray(integers.T), kind.bits, plain).T)
    tensors = {"qweight": turned, "qzeros": stored, "scales": scales}
    tensors["g_idx"] = which.astype(np.int32)
    if kind.bias:
        tensors["bias"] = np.zeros(out, np.float16)
    return tensors, values.T


def quantized_folder(plain: Path, folder: Path, values: Path, kind: Kind) -> None:
    """From a checkpoint in `plain`: one quantised in `folder`, and in `values` one of the values that it stands for."""
    rng = np.random.default_rng(0)
    tensors = load_file(plain / "model.safetensors")
    packed, dequantized = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        base = name.removesuffix(".weight")
        if not base.endswith("_proj"):
            continue
        found, stands_for = quantize(tensor.float().numpy(), kind, rng)
        del packed[name]
        packed |= {f"{base}.{suffix}": torch.from_numpy(np.ascontiguousarray(a)) for suffix, a in found.items()}
        dequantized[name] = torch.from_numpy(np.ascontiguousarray(stands_for))
    config = json.loads((plain / "config.json").read_text())
    for where, content, extra in ((folder, packed, {"quantization_config": kind.config}), (values, dequantized, {})):
        where.mkdir(parents=True, exist_ok=True)
        save_file(content, where / "model.safetensors")
        (where / "config.json").write_text(json.dumps({**config, **extra}))
        for path in plain.glob("*token*"):
            (where / path.name).write_bytes(path.read_bytes())
