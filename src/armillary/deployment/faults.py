"""What pydantic found wrong, each fault where the user wrote it, and one where a value may be of several kinds.

Where a field takes several kinds, pydantic tries them all, and names in the place of each fault which kind it tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from armillary.deployment.document import KeyPath

ALTERNATIVES = "alternatives"
"""The type of a fault that stands for several, in `ctx.of`: the value is none of the kinds that it may be."""


@dataclass(frozen=True)
class _Fault:
    """A fault, and the kinds that were tried on the way to it: a value's place, and the kind it was taken for."""

    problem: Any
    tried: tuple[tuple[KeyPath, str], ...]

    @property
    def key(self) -> KeyPath:
        key: KeyPath = self.problem["loc"]
        return key


def located(error: ValidationError, content: Any) -> list[Any]:
    """As `ValidationError.errors()`, but `loc` leads through the keys of `content` alone, and nowhere twice because of
    kinds: those of the kind that the value comes nearest to are left, or one of type `ALTERNATIVES`.
    """
    found = _nearest([_placed(problem, content) for problem in error.errors(include_url=False)])
    # An entry that failed is also missed in the count of entries; one of the two is enough.
    within = {problem["loc"][:length] for problem in found for length in range(len(problem["loc"]))}
    return [problem for problem in found if problem["type"] != "too_short" or problem["loc"] not in within]


def _placed(problem: Any, content: Any) -> _Fault:
    key: KeyPath = ()
    tried = []
    for number, part in enumerate(problem["loc"], start=1):
        entry = isinstance(content, Sequence) and isinstance(part, int) and part < len(content)
        if entry or (isinstance(content, Mapping) and part in content):
            key, content = (*key, part), content[part]
        elif problem["type"] == "missing" and number == len(problem["loc"]):
            key = (*key, part)
        else:
            tried.append((key, str(part)))
    return _Fault({**problem, "loc": key}, tuple(tried))


def _nearest(faults: Sequence[_Fault]) -> list[Any]:
    found: list[Any] = []
    values: dict[KeyPath, dict[str, list[_Fault]]] = {}
    for fault in faults:
        if not fault.tried:
            found.append(fault.problem)
            continue
        (key, kind), *rest = fault.tried
        values.setdefault(key, {}).setdefault(kind, []).append(_Fault(fault.problem, tuple(rest)))
    for key, kinds in values.items():
        # Of a kind that fits as a whole, faults lie further within.
        within = [those for those in kinds.values() if all(len(fault.key) > len(key) for fault in those)]
        if within or len(kinds) == 1:
            found += _nearest(min(within or kinds.values(), key=len))
        else:
            problems = [fault.problem for those in kinds.values() for fault in those]
            found.append({**problems[0], "type": ALTERNATIVES, "ctx": {"of": problems}})
    return found
