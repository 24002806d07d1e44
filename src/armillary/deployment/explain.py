"""What pydantic found wrong, in the words of this project: what was required, what was given, what would work."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from armillary.deployment.document import KeyPath, dotted
from armillary.deployment.faults import ALTERNATIVES, located
from armillary.errors import ArmillaryError, Code

M = TypeVar("M", bound=BaseModel)

SECRET = {"api_keys", "api_key"}
"""Fields whose values never reach a message."""

_BOUNDS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "literal_error": "must be one of {expected}",
    "string_too_short": "must not be empty",
    "too_short": "must have at least {min_length} entry",
    "too_long": "must have at most {max_length} entries",
    "finite_number": "must be a finite number",
}
_KINDS = {
    "int_": "must be a whole number",
    "float_": "must be a number",
    "bool_": "must be true or false",
    "string_": "must be text",
    "path_": "must be text",
    "model_": "must hold keys and values",
    "dict_": "must hold keys and values",
    "tuple_": "must be a list",
    "list_": "must be a list",
}


def explain(problem: Any, name: str, known: Collection[str] = ()) -> str:
    """One problem as a sentence.

    Args:
        problem: an entry of `located`.
        name: how the user knows the value at fault: a flag, or a key with its place.
        known: the keys that would have been accepted there.
    """
    shown = "(not shown)" if SECRET & set(problem["loc"]) else repr(problem.get("input"))
    kind = str(problem["type"])
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(problem["loc"][-1]), list(known), n=1)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"
        return f"{name} is not a known key, given {shown}; {hint}"
    if kind == "missing":
        return f"{name} must be given"
    if kind == "value_error":
        text = str(problem["ctx"]["error"])
        if "given" not in text and problem["loc"]:
            text = f"{text}, given {shown}"
        return f"{name} {text}".lstrip() if text.startswith("must") or not name else f"{name}: {text}"
    return f"{name} {_requirement(problem)}, given {shown}"


def flag_name(field: str) -> str:
    """The command line flag of a field: kv_blocks -> --kv-blocks."""
    return "--" + field.replace("_", "-")


def checked(model: type[M], values: Mapping[str, Any], as_flags: bool = True) -> M:
    """An instance of `model` made from fields that a user gave.

    Args:
        as_flags: whether the user knows the fields as flags (`--block-size`) or by name (`block_size`).

    Raises:
        ArmillaryError: INVALID_DEPLOYMENT, one line per problem; its `param` is the first one's field.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        lines, found = [], located(error, values)
        for problem in found:
            key: KeyPath = problem["loc"]
            name = flag_name(str(key[0])) if as_flags and key else dotted(key)
            lines.append(explain(problem, name, known_keys(model, key)))
        field = next((str(problem["loc"][0]) for problem in found if problem["loc"]), None)
        raise ArmillaryError(Code.INVALID_DEPLOYMENT, "\n".join(lines), field) from None


def known_keys(model: type[BaseModel], key: KeyPath) -> list[str]:
    """The keys that would have been accepted where `key` was given, somewhere within `model`."""
    group = model
    for part in key[:-1]:
        if part in group.model_fields:
            group = next(_groups(group.model_fields[str(part)].annotation), group)
    return sorted(group.model_fields)


def _groups(kind: Any) -> Iterator[type[BaseModel]]:
    """The groups of keys that a value of a kind may consist of."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from _groups(part)


def _requirement(problem: Any) -> str:
    kind = str(problem["type"])
    if kind == ALTERNATIVES:
        first, *others = dict.fromkeys(_requirement(one) for one in problem["ctx"]["of"])
        return " or ".join([first, *(text.removeprefix("must ").removeprefix("be ") for text in others)])
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**problem.get("ctx") or {})
    for prefix, requirement in _KINDS.items():
        if kind.startswith(prefix):
            return requirement
    return f"is not valid ({problem['msg']})"
