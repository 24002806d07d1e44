"""Flags made from the fields of settings, so that a flag and its field cannot differ."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from armillary.core.order import ORDERS
from armillary.deployment import Size, format_size
from armillary.deployment.explain import flag_name
from armillary.errors import ArmillaryError, Code

Given = dict[str, dict[str, Any]]
"""Group -> field -> value, for the flags that were given."""

_ARGUMENTS = {"target": "MODEL|FILE"}
"""Parameters that are no flags, and how the help names them."""
_VARIABLES = {"api_keys": "ARMILLARY_API_KEYS", "api_key": "ARMILLARY_API_KEY"}


def refuse_given(values: Mapping[str, Any], why: str) -> None:
    """Refuse parameters that have no meaning beside others.

    Args:
        values: by name; None where it was not given.

    Raises ArmillaryError: INVALID_REQUEST for the first that was.
    """
    for name, value in values.items():
        if value is not None:
            shown = _ARGUMENTS.get(name) or flag_name(name)
            raise ArmillaryError(Code.INVALID_REQUEST, f"{shown} {why}, given {value!r}", name)


def with_flags(
    omit: Collection[str] = (), **groups: type[BaseModel]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one flag per field of each group, but for the fields in `omit` (`name`, or `group.name`).

    The command receives them as keyword `given: Given`, without those that were not set. The first line of a
    group's docstring heads its flags in the help.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        fields = [
            (group, name, field)
            for group, model in groups.items()
            for name, field in model.model_fields.items()
            if name not in omit and f"{group}.{name}" not in omit
        ]

        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            given: Given = {group: {} for group in groups}
            for group, name, _ in fields:
                value = values.pop(name)
                if value is not None and value != []:
                    given[group][name] = value
            command(**values, given=given)

        signature = inspect.signature(command, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "given"]
        flags = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=_flag(name, field, _heading(groups[group])),
            )
            for group, name, field in fields
        ]
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + flags
        wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapper

    return decorate


def _heading(model: type[BaseModel]) -> str:
    """What a group of flags is about: its docstring up to the first stop."""
    return re.split(r"[.:\n]", model.__doc__ or model.__name__)[0]


def _flag(name: str, field: FieldInfo, heading: str) -> Any:
    """The annotation from which typer makes the flag of a field."""
    kind, metavar, choices = _kind(name, field)
    default = shown_default(field)
    # The first sentence says what it is; what it trades stands in docs/deployment.md, where there is room.
    sentences = (field.description or "").rstrip(".").split(". ")
    text = ". ".join([sentences[0], *(sentence for sentence in sentences[1:] if sentence.startswith("Unset:"))]) + "."
    text += f" One of {', '.join(choices)}." if choices else ""
    text += f" [default: {default}]" if default else ""
    names = [f"{flag_name(name)}/--no-{name.replace('_', '-')}" if kind is bool else flag_name(name)]
    option = typer.Option(
        *names,
        help=text.replace("[", r"\["),
        metavar=metavar,
        show_default=False,
        envvar=_VARIABLES.get(name),
        rich_help_panel=heading,
    )
    return Annotated[Optional[kind], option]  # noqa: UP045 (a runtime type, not an annotation)


def _kind(name: str, field: FieldInfo) -> tuple[Any, str | None, list[str]]:
    """What the command line parses for a field, how the help names the value, and its choices if they are few.

    The model checks the value, so that a flag and a file are refused in the same words.
    """
    if name == "order":
        return str, "NAME", sorted(ORDERS)
    if _is_size(field):
        return str, "SIZE", []
    annotation = field.annotation
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is Literal:
        return str, "NAME", [str(choice) for choice in get_args(annotation)]
    if get_origin(annotation) is tuple:
        return list[str], "TEXT", []
    if annotation is Path:
        return str, "FILE", []
    if get_origin(annotation) is dict:
        return str, "JSON", []
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation, {int: "INT", float: "NUMBER", str: "TEXT"}.get(annotation), []  # type: ignore[arg-type]


def _is_size(field: FieldInfo) -> bool:
    parts = get_args(field.annotation)
    return any(mark in field.metadata for mark in get_args(Size)[1:2]) or Size in parts


def shown_default(field: FieldInfo) -> str:
    """A field's default as text; empty where the description already says what unset means."""
    if field.default in (None, (), PydanticUndefined):
        return ""
    if _is_size(field):
        return format_size(field.default).replace(" ", "")
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
