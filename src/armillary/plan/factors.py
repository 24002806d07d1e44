"""Factors: the settings that an experiment varies, between what and what, and how they are coded from -1 to 1."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from armillary.errors import ArmillaryError, Code

Value = int | float | bool | str
Point = dict[str, Value]
"""Path of a factor -> its value in one run."""


@dataclass(frozen=True)
class Factor:
    """One setting to vary.

    Attributes:
        path: dotted, such as `engine.max_running`.
        levels: from low to high for numbers; two for anything else.
        scale: whether the middle of two numbers is their mean or the root of their product.
    """

    path: str
    levels: tuple[Value, ...]
    scale: Literal["linear", "log"] = "linear"

    def __post_init__(self) -> None:
        shown = list(self.levels)
        if len(self.levels) < 2 or len(set(self.levels)) != len(self.levels):
            raise _wrong(self.path, "must have two different levels or more", shown)
        if self.numeric:
            if sorted(self._numbers) != list(self._numbers):
                raise _wrong(self.path, "must have its levels from low to high", shown)
            if not all(math.isfinite(level) for level in self._numbers):
                raise _wrong(self.path, "must have finite levels", shown)
            if self.scale == "log" and self._numbers[0] <= 0:
                raise _wrong(self.path, "must have levels above 0 on a logarithmic scale", shown)
        elif len(self.levels) > 2:
            raise _wrong(self.path, "must have two levels where they are not numbers (compare two at a time)", shown)
        elif self.scale == "log":
            raise _wrong(self.path, "must be a number to have a logarithmic scale", shown)

    @property
    def numeric(self) -> bool:
        """Whether there is a middle between its levels."""
        return all(isinstance(level, int | float) and not isinstance(level, bool) for level in self.levels)

    @property
    def name(self) -> str:
        """The last part of the path, for pictures."""
        return self.path.rsplit(".", 1)[-1]

    def code(self, value: Value) -> float:
        """-1 at the lowest level, 1 at the highest."""
        if not self.numeric:
            return -1.0 if value == self.levels[0] else 1.0
        low, high = self._f(self._numbers[0]), self._f(self._numbers[-1])
        return (self._f(float(value)) * 2 - low - high) / (high - low)

    def decode(self, coded: float) -> Value:
        """The value at a code; whole where both ends are."""
        if not self.numeric:
            return self.levels[0] if coded < 0 else self.levels[1]
        for level in self.levels:  # to the last bit, where it is one of the levels
            if abs(self.code(level) - coded) < 1e-9:
                return level
        low, high = self._f(self._numbers[0]), self._f(self._numbers[-1])
        value = (low + high + coded * (high - low)) / 2
        value = math.exp(value) if self.scale == "log" else value
        return round(value) if all(isinstance(level, int) for level in self.levels) else float(f"{value:.12g}")

    @property
    def _numbers(self) -> tuple[float, ...]:
        return tuple(float(level) for level in self.levels)

    def _f(self, value: float) -> float:
        return math.log(value) if self.scale == "log" else value


def said(value: Value) -> str:
    """A value as a file has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_path(path: str, roots: Mapping[str, type[BaseModel]]) -> Any:
    """The kind of the setting that a path leads to; one that leads to no setting is refused with the names there are.

    Args:
        roots: the first part of a path -> what it leads into. A number is an entry of a list.
    """
    parts = path.split(".")
    kind: Any = roots.get(parts[0])
    if kind is None:
        raise _unknown(path, parts[0], list(roots))
    for at, part in enumerate(parts[1:], start=1):
        model, listed = _inside(kind)
        if listed:
            if not (part.isdecimal() and len(part) <= 3):
                raise _wrong(path, f"must have the number of an entry after {'.'.join(parts[:at])}", part)
            kind = listed
        elif model is None:
            raise _wrong(path, "must end at a single setting", f"{part} below {'.'.join(parts[:at])}")
        elif part not in model.model_fields:
            raise _unknown(path, part, [".".join([*parts[:at], name]) for name in model.model_fields])
        else:
            kind = model.model_fields[part].annotation
    model, listed = _inside(kind)
    if model is not None or listed:
        names = [f"{path}.{name}" for name in model.model_fields] if model else [f"{path}.0"]
        raise _wrong(path, f"must lead to a single setting, such as {', '.join(names[:4])}", path)
    return kind


def takes_fractions(kind: Any) -> bool:
    """Whether a setting of this kind may be a number between two whole ones."""
    return kind is float or any(takes_fractions(part) for part in get_args(kind))


def laid_over(content: Mapping[str, Any], point: Mapping[str, Value]) -> dict[str, Any]:
    """`content` with the values of a point at their paths; groups and list entries that are missing are made.

    What is no group or no list where one must be is left as it is, for whoever checks the whole to refuse.
    """
    found = dict(content)
    for path, value in point.items():
        _put(found, path.split("."), value)
    return found


def _put(into: dict[str, Any], parts: Sequence[str], value: Value) -> None:
    here, rest = parts[0], parts[1:]
    inner = into.get(here)
    if not rest:
        into[here] = value
    elif rest[0].isdigit():
        if not isinstance(inner, list | tuple | None):
            return
        entries = list(inner or ())
        index = int(rest[0])
        entries += [{} for _ in range(index + 1 - len(entries))]
        into[here] = entries
        if len(rest) == 1:
            entries[index] = value
            return
        # An entry may be just a path, as in `models: [isles]`.
        entry = {"path": entries[index]} if isinstance(entries[index], str) else entries[index]
        if isinstance(entry, Mapping):
            entries[index] = dict(entry)
            _put(entries[index], rest[1:], value)
    elif isinstance(inner, Mapping | None):
        into[here] = dict(inner or {})
        _put(into[here], rest, value)


def _inside(kind: Any) -> tuple[type[BaseModel] | None, Any]:
    """(the group of settings that an annotation holds, the kind of a list's entries), None where it is neither."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind, None
    if get_origin(kind) is Annotated:
        return _inside(get_args(kind)[0])
    if get_origin(kind) is tuple and any(_inside(part)[0] for part in get_args(kind)):
        return None, get_args(kind)[0]
    if get_origin(kind) in (Union, UnionType):
        for part in get_args(kind):
            found = _inside(part)
            if found != (None, None):
                return found
    return None, None


def _unknown(path: str, part: str, known: Sequence[str]) -> ArmillaryError:
    near = difflib.get_close_matches(part, [name.rsplit(".", 1)[-1] for name in known], n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
    return _wrong(path, f"must be the path of a setting; {hint}", path)


def _wrong(path: str, requirement: str, given: object) -> ArmillaryError:
    return ArmillaryError(Code.INVALID_REQUEST, f"factor {path} {requirement}, given {given!r}", param=path)
