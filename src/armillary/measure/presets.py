"""Workloads by name, and the workload that a specification asks for: drawn, or replayed from a file.

A preset is a specification like any other: what is given beside its name replaces a part of it. The figures are round
ones of our own in the range of what public traces show (docs/workloads.md); a trace of your own traffic is
better than any of them.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from armillary.errors import ArmillaryError, Code
from armillary.measure.scaling import at_rate, at_speed, first_requests, of_volume
from armillary.measure.synthesis import WorkloadSpec, check, synthesise
from armillary.measure.traces import read_workload
from armillary.measure.workload import Workload

PRESETS: dict[str, dict[str, Any]] = {
    "chat": {
        "rate": 1.0, "turns": "geometric:4", "think": 20.0, "prefixes": 1, "prefix_length": 256,
        "prompt_length": "lognormal:80,1.2,2000", "output_length": "lognormal:220,0.8,1024", "context_limit": 8192,
    },
    "rag": {
        "rate": 1.0, "prefixes": 500, "prefix_length": 3072, "prefix_zipf": 1.0,
        "prompt_length": "lognormal:60,0.7,500", "output_length": "lognormal:180,0.7,800", "context_limit": 8192,
    },
    "agent": {
        "rate": 1.0, "turns": "geometric:12", "think": 2.0, "prefixes": 8, "prefix_length": 3072, "prefix_zipf": 1.0,
        "prompt_length": "lognormal:500,1.5,8000", "output_length": "lognormal:120,1.0,2000", "context_limit": 32768,
    },
    "batch": {
        "prefixes": 1, "prefix_length": 512, "prompt_length": "lognormal:800,0.8,6000",
        "output_length": "lognormal:150,0.6,1000", "correlation": 0.3, "context_limit": 8192,
    },
}  # fmt: skip
"""People talking; questions about shared documents; tools called in turns; a heap of work, all there at once."""

_OF_A_FILE = frozenset({"workload", "requests", "rate", "speed", "volume", "seed"})


def workload_of(spec: WorkloadSpec) -> Workload:
    """The workload that `spec` asks for."""
    own, drawn = _told(spec)
    if drawn is not None:
        return synthesise(drawn)
    return _replayed(own, str(own.workload))


def check_spec(spec: WorkloadSpec) -> None:
    """Refuse a specification of which there is no workload, without drawing one or reading the file that it names.

    Raises ArmillaryError: INVALID_REQUEST, and NOT_FOUND for a file that is named nowhere.
    """
    own, drawn = _told(spec)
    if drawn is None:
        _check_replayed(own)
    else:
        check(drawn)


def _told(spec: WorkloadSpec) -> tuple[WorkloadSpec, WorkloadSpec | None]:
    """What was given, and what to draw with that of the preset; None where a file is named."""
    own = WorkloadSpec(
        **{name: getattr(spec, name) for name in WorkloadSpec.model_fields if name in spec.model_fields_set}
    )
    if own.workload is None:
        return own, own
    if own.workload in PRESETS:
        return own, _of_preset(own, own.workload)
    if not Path(own.workload).suffix and not Path(own.workload).exists():
        raise ArmillaryError(
            Code.NOT_FOUND,
            f"workload must be one of {', '.join(PRESETS)} or a file, given {own.workload!r}",
            param="workload",
        )
    return own, None


def _of_preset(spec: WorkloadSpec, name: str) -> WorkloadSpec:
    given = {field: getattr(spec, field) for field in spec.model_fields_set}
    preset = dict(PRESETS[name])
    if spec.users is not None:
        preset.pop("rate", None)
    if spec.prefixes == 0 and "prefixes" in given:
        for field in ("prefix_length", "prefix_zipf"):
            preset.pop(field, None)
    if spec.turns == "1" and "turns" in given and spec.users is None:
        preset.pop("think", None)
    return WorkloadSpec(**(preset | given))


def _check_replayed(spec: WorkloadSpec) -> None:
    unfit = sorted(spec.model_fields_set - _OF_A_FILE)
    if unfit:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"a workload must be read from a file or drawn, given a file and also {', '.join(unfit)}",
            param=unfit[0],
        )
    if {"rate", "speed"} <= spec.model_fields_set:
        raise ArmillaryError(
            Code.INVALID_REQUEST, "rate must be given or speed, which say the same in two ways; given both", "speed"
        )


def _replayed(spec: WorkloadSpec, path: str) -> Workload:
    _check_replayed(spec)
    workload = _read(path)
    if "requests" in spec.model_fields_set:
        workload = first_requests(workload, spec.requests)
    if spec.volume != 1:
        workload = of_volume(workload, spec.volume, spec.seed)
    if "rate" in spec.model_fields_set:
        workload = at_rate(workload, spec.rate)
    if spec.speed != 1:
        workload = at_speed(workload, spec.speed)
    return workload


def _read(path: str) -> Workload:
    try:
        found = os.stat(path)
    except OSError:
        return read_workload(path)  # which says what is wrong with it
    return _unchanged(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=2)
def _unchanged(path: str, changed_ns: int, size: int) -> Workload:
    """The workload of a file as long as nobody writes to it: replications and searches ask for it again and again."""
    return read_workload(path)
