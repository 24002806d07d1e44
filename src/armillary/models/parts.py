"""Which tensors a checkpoint has, in which file each lies, and what part of a parameter of ours it fills.

Reads names alone; nothing here depends on torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from safetensors import SafetensorError, safe_open

from armillary.errors import ArmillaryError, Code
from armillary.models.config import read_json
from armillary.models.families import FAMILIES
from armillary.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SKIPPED = re.compile(r"rotary_emb\.inv_freq$")


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a checkpoint: it fills `rows` of a parameter of ours from row `start` on.

    `expert` selects the matrix where the parameter stacks one per expert.
    """

    name: str
    parameter: str
    start: int
    rows: int
    expert: int | None = None

    def of(self, parameter: Tensor) -> Tensor:
        """The view of the parameter that this tensor fills."""
        whole = parameter if self.expert is None else parameter[self.expert]
        return whole[self.start : self.start + self.rows]


def layout(spec: ModelSpec) -> Iterator[Part]:
    """Every tensor that a checkpoint of this model has."""
    yield Part("model.embed_tokens.weight", "embed", 0, spec.vocab_size)
    yield Part("model.norm.weight", "norm", 0, spec.hidden_size)
    if not spec.tied:
        yield Part("lm_head.weight", "head", 0, spec.vocab_size)
    names = FAMILIES[spec.family].layer
    for index in range(spec.num_layers):
        for parameter, rows in _rows(spec, index).items():
            experts = range(spec.layers[index].mlp.experts) if parameter.startswith("expert_") else (None,)
            tensors = names[parameter]
            sizes = rows if len(tensors) > 1 else [sum(rows)]
            for expert in experts:
                start = 0
                for tensor, size in zip(tensors, sizes, strict=True):
                    name = f"model.layers.{index}.{tensor.format(e=expert)}"
                    yield Part(name, f"layers.{index}.{parameter}", start, size, expert)
                    start += size


def named_parts(spec: ModelSpec, files: Mapping[str, str]) -> Iterator[Part]:
    """Every part under the name that these files have for it: models saved without their head, as embedding models
    often are, leave the prefix out."""
    parts = layout(spec)
    bare = "model.embed_tokens.weight" not in files and "embed_tokens.weight" in files
    return (replace(part, name=part.name.removeprefix("model.")) for part in parts) if bare else parts


def _rows(spec: ModelSpec, index: int) -> dict[str, list[int]]:
    """Our parameters of one layer -> rows of each tensor that one is stacked from."""
    layer, hidden = spec.layers[index], spec.hidden_size
    attention, mlp = layer.attention, layer.mlp
    q, kv = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    rows: dict[str, list[int]] = {"qkv": [q, kv, kv], "out": [hidden]}
    if attention.qkv_bias:
        rows["qkv_bias"] = [q, kv, kv]
    if attention.out_bias:
        rows["out_bias"] = [hidden]
    if attention.qk_norm != "none":
        full = attention.qk_norm == "full"
        rows["q_norm"], rows["k_norm"] = [q if full else attention.head_dim], [kv if full else attention.head_dim]
    if mlp.experts:
        rows["router"] = [mlp.experts]
        rows["expert_gate_up"], rows["expert_down"] = [mlp.intermediate, mlp.intermediate], [hidden]
    else:
        rows["gate_up"], rows["down"] = [mlp.intermediate, mlp.intermediate], [hidden]
        if mlp.bias:
            rows["gate_up_bias"], rows["down_bias"] = [mlp.intermediate, mlp.intermediate], [hidden]
    if spec.norms != "post":
        rows["attention_norm"], rows["mlp_norm"] = [hidden], [hidden]
    if spec.norms != "pre":
        rows["attention_out_norm"], rows["mlp_out_norm"] = [hidden], [hidden]
    return rows


def tensor_files(folder: Path) -> dict[str, str]:
    """Tensor name -> file, from the index where there is one."""
    index = read_json(folder / INDEX)
    if index is not None:
        where: Any = index.get("weight_map")
        if not isinstance(where, dict) or not where:
            invalid(f"{folder / INDEX} must have a weight_map")
        bad = [file for file in where.values() if not isinstance(file, str) or Path(file).name != file]
        if bad:
            invalid(f"{folder / INDEX} must name files in its own folder, given {bad[0]!r}")
        return where
    if not (folder / SINGLE).is_file():
        invalid(f"the model folder must contain {SINGLE} or {INDEX}, given {folder}, which has neither")
    with opened(folder / SINGLE, "numpy") as tensors:
        return dict.fromkeys(tensors.keys(), SINGLE)


def opened(path: Path, framework: str) -> Any:
    """A safetensors file; its tensors come in the arrays of `framework`, which this loads.

    Raises ArmillaryError: INVALID_CHECKPOINT for any other file.
    """
    try:
        return safe_open(path, framework=framework, device="cpu")
    except (OSError, SafetensorError) as error:
        invalid(f"{path} must be a safetensors file, given {error}")


def check_names(folder: Path, wanted: Set[str], files: Mapping[str, str], spec: ModelSpec) -> None:
    """Refuse a folder that lacks a wanted tensor, or has one that nothing asks for."""
    missing = [name for name in sorted(wanted) if name not in files]
    if missing:
        quantised = f"{missing[0].removesuffix('.weight')}.qweight" in files
        why = "; quantised ones are read where config.json has `quantization_config`" if quantised else ""
        invalid(f"{folder} must contain tensor {missing[0]}, and does not ({len(missing)} are missing){why}")
    for name in files:
        if name not in wanted and not _SKIPPED.search(name) and not (spec.tied and name == "lm_head.weight"):
            invalid(f"{folder} must not contain tensor {name}, which config.json gives no place to")


def invalid(message: str) -> NoReturn:
    """Refuse a checkpoint."""
    raise ArmillaryError(Code.INVALID_CHECKPOINT, message, "model")
