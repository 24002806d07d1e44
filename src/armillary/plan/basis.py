"""What an answer rests on besides its question: the software, the model's shape, and the machine's figures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from armillary.deployment.settings import BUNDLED
from armillary.measure.presets import PRESETS
from armillary.measure.synthesis import WorkloadSpec
from armillary.plan.question import Question
from armillary.twin.deployed import profile_of, read_config
from armillary.twin.hardware import find_hardware
from armillary.twin.here import HERE, THIS_MACHINE, measured_on
from armillary.twin.profile import json_digest
from armillary.version import __version__

_FILES = ("workload", "prompt_length", "output_length", "arrivals")
"""Fields of a workload that may name files."""


def rooted(question: Question) -> Question:
    """The same question with the whole paths of the files that it names, so that it can be asked from anywhere."""
    deployment = question.deployment
    models = tuple(m.model_copy(update={"path": _model(m.path)}) for m in deployment.models)
    named = {name: getattr(question.spec, name) for name in _FILES if name in question.spec.model_fields_set}
    changed = {name: _file(name, text) for name, text in named.items() if text is not None}
    return replace(
        question,
        deployment=deployment.model_copy(update={"models": models}),
        spec=question.spec.model_copy(update=changed),
    )


def basis(question: Question) -> dict[str, Any]:
    """What its answer rests on: names of what there is for people, digests of what is in it.

    Raises ArmillaryError: as `read_config`, `profile_of` and `find_hardware`.
    """
    config = read_config(question.deployment.model.path)
    found: dict[str, Any] = {"version": __version__, "model": json_digest(config)}
    if question.hardware.lower() == HERE:
        profile = profile_of(question.deployment)
        found["profile"] = {
            "key": profile.key,
            "digest": json_digest(profile.model_dump(mode="json")),
            "name": profile.name,
            "begun": profile.begun,
            "cpu": profile.machine.get("cpu"),
            "of_this_machine": measured_on(profile) == THIS_MACHINE,
        }
    else:
        found["hardware"] = json_digest(find_hardware(question.hardware).model_dump(mode="json"))
    files = {name: _contents(question.spec, name) for name in _FILES}
    return found | {"files": {name: digest for name, digest in files.items() if digest is not None}}


def changes(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """What an answer rested on and rests on no more, in words; nothing where it is the same.

    Args:
        before: None where a plan does not say.
    """
    if before is None:
        return ["it does not say what it rested on"]
    told = []
    if before.get("version") != now["version"]:
        told.append(f"it was made by armillary {before.get('version')}, and this is {now['version']}")
    if before.get("model") != now["model"]:
        told.append("the model's config.json has changed")
    one, other = before.get("profile"), now.get("profile") or {}
    one = one if isinstance(one, Mapping) else {}
    if one.get("digest") != other.get("digest"):
        told.append(f"its profile was {_said(one)}, and now there is {_said(other)}")
    elif one.get("of_this_machine") != other.get("of_this_machine"):
        told.append(f"its profile is of another machine ({other.get('cpu')}) on one of the two")
    if before.get("hardware") != now.get("hardware"):
        told.append("the data sheet of its hardware has changed")
    if before.get("files") != now["files"]:
        told.append("a file that its workload names has changed")
    return told


def _said(profile: Mapping[str, Any]) -> str:
    return f"{profile.get('name')} of {profile.get('begun')} UTC" if profile else "none"


def _model(path: str) -> str:
    """`isles` is the bundled model, whatever lies beside."""
    here = path != BUNDLED and Path(path).expanduser().exists()
    return str(Path(path).expanduser().absolute()) if here else path


def _file(field: str, text: str) -> str:
    """A field with the whole path of the file that it names, if it names one."""
    kind, name, more = _named(field, text)
    return text if name is None else f"{kind}{Path(name).absolute()}{more}"


def _named(field: str, text: str) -> tuple[str, str | None, str]:
    """What stands before the name of a file, the name, and what stands after it."""
    if field == "workload":
        return "", None if text in PRESETS or not Path(text).exists() else text, ""
    kind, colon, rest = text.partition(":")
    if kind.strip().lower() not in ("trace", "profile"):
        return "", None, ""
    name, comma, seconds = rest.partition(",") if field == "arrivals" else (rest, "", "")
    return kind + colon, name, comma + seconds


def _contents(spec: WorkloadSpec, field: str) -> str | None:
    """A digest of the file that a field names; None where it names none."""
    text = getattr(spec, field)
    name = None if text is None else _named(field, text)[1]
    if name is None:
        return None
    with Path(name).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
