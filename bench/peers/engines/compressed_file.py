"""A checkpoint in the format of compressed-tensors, rounded to nearest; runs in vLLM's environment."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

GROUP = 32
PACKED = 8
"""Values of 4 bits in an int32, the first in the lowest bits."""
WEIGHTS = {"type": "int", "symmetric": True, "dynamic": False}
SCHEMES: dict[str, dict[str, Any]] = {
    "int8": {
        "format": "int-quantized",
        "weights": {**WEIGHTS, "num_bits": 8, "strategy": "channel"},
        "input_activations": {"type": "int", "symmetric": True, "dynamic": True, "num_bits": 8, "strategy": "token"},
    },
    "int4": {
        "format": "pack-quantized",
        "weights": {**WEIGHTS, "num_bits": 4, "strategy": "group", "group_size": GROUP},
        "input_activations": None,
    },
}


def write_compressed(checkpoint: Path, target: Path, precision: str) -> None:
    """The matrices of all layers in the scheme of `precision`; embedding, head and norms as they are."""
    files: Any = import_module("safetensors.torch")
    tensors: dict[str, Any] = {}
    for name, values in files.load_file(checkpoint / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            tensors.update(_quantized(name.removesuffix(".weight"), values.float(), precision))
        else:
            tensors[name] = values
    target.mkdir()
    files.save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(checkpoint / name, target / name)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    form, scheme = SCHEMES[precision]["format"], {k: v for k, v in SCHEMES[precision].items() if k != "format"}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "output_activations": None, **scheme}},
        "ignore": ["lm_head"],  # which is the embedding in one of the shapes
    }
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _quantized(name: str, values: Any, precision: str) -> dict[str, Any]:
    """What the format keeps of a matrix."""
    torch: Any = import_module("torch")
    rows, columns = values.shape
    if precision == "int8":
        scale = values.abs().amax(1, keepdim=True) / 127
        whole = (values / scale).round().clamp(-127, 127).to(torch.int8)
        return {f"{name}.weight": whole, f"{name}.weight_scale": scale}
    groups = values.view(rows, columns // GROUP, GROUP)
    scale = groups.abs().amax(2, keepdim=True) / 7
    whole = ((groups / scale).round().clamp(-8, 7) + 8).to(torch.int32).view(rows, columns // PACKED, PACKED)
    packed = sum(whole[:, :, place] << (4 * place) for place in range(PACKED))
    return {
        f"{name}.weight_packed": packed,
        f"{name}.weight_scale": scale.squeeze(2).to(torch.bfloat16),
        f"{name}.weight_shape": torch.tensor([rows, columns]),
    }


__all__ = ["write_compressed"]
