"""Checkpoints of a run in progress: tensors as safetensors, the rest as JSON; complete or absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from armillary.errors import ArmillaryError, Code
from armillary.models.decoder import Decoder


@dataclass
class Progress:
    """Where a run stands; with weights and moments, all that its future depends on.

    Attributes:
        step: optimizer steps done.
        next_document: number of the first document not yet trained on.
        mixture: shares of the kinds of documents now.
        tokens, targets: trained on so far.
        seconds, cpu_seconds: spent in training so far, by the wall and by the process.
        history: one row an evaluation.
    """

    step: int = 0
    next_document: int = 0
    mixture: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    targets: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def save(
    folder: Path,
    decoder: Decoder,
    optimizers: Iterable[torch.optim.Optimizer],
    progress: Progress,
    run: dict[str, Any],
) -> None:
    """Writes `folder/step-N`, then removes older ones. `run` describes the run, so that another one is not resumed."""
    target = folder / f"step-{progress.step:08d}"
    partial = folder / f"{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    moments: dict[str, Tensor] = {}
    for parameter, state in (item for optimizer in optimizers for item in optimizer.state.items()):
        for key, value in state.items():
            moments[f"{names[id(parameter)]}:{key}"] = value
    weights = {name: parameter.detach() for name, parameter in decoder.named_parameters()}
    save_file(weights, partial / "weights.safetensors")
    save_file(moments, partial / "moments.safetensors")
    (partial / "progress.json").write_text(json.dumps({"run": run, "progress": asdict(progress)}, indent=1) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    for other in folder.glob("step-*"):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint under `folder`."""
    found = [path for path in folder.glob("step-*") if path.suffix != ".partial"]
    return max(found, default=None)


def load(
    checkpoint: Path, decoder: Decoder, optimizers: Iterable[torch.optim.Optimizer], run: dict[str, Any]
) -> Progress:
    """Restores weights and moments in place and returns the progress.

    Raises ArmillaryError INVALID_CHECKPOINT where the checkpoint belongs to a run with other settings.
    """
    stored = json.loads((checkpoint / "progress.json").read_text())
    differing = sorted(key for key in {*run, *stored["run"]} if run.get(key) != stored["run"].get(key))
    if differing:
        key = differing[0]
        raise ArmillaryError(
            Code.INVALID_CHECKPOINT,
            f"to resume, settings must be those of the run in {checkpoint.parent}, given {key}={run.get(key)!r} "
            f"where it has {stored['run'].get(key)!r}, so use another folder or start over without resume",
            key,
        )
    weights = load_file(checkpoint / "weights.safetensors")
    moments = load_file(checkpoint / "moments.safetensors")
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.copy_(weights[name])
    for optimizer in optimizers:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            prefix = f"{names[id(parameter)]}:"
            found = {key.removeprefix(prefix): value for key, value in moments.items() if key.startswith(prefix)}
            if found:
                optimizer.state[parameter] = found
    return Progress(**stored["progress"])
