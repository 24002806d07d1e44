"""Tools in a request: what is offered to the model, and which calls are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from armillary.errors import ArmillaryError, Code
from armillary.models.calls.choose import ReplyFormat
from armillary.runtime.grammar_reply import WantedCalls

MAX_TOOLS = 128
_ANYTHING: Mapping[str, Any] = {"type": "object"}
_NOTHING: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


class Function(BaseModel):
    """What a tool does, for the template, and what a call of it must look like."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def schema_of_arguments(self) -> Mapping[str, Any]:
        """An object's schema; without one, the empty object."""
        return {"type": "object", **self.parameters} if self.parameters else _NOTHING


class Tool(BaseModel):
    """A tool that the model may call."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    function: Function


class FunctionName(BaseModel):
    """One of the tools, by name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str


class NamedTool(BaseModel):
    """The one tool that must be called."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    function: FunctionName


class Allowed(BaseModel):
    """Some of the tools, and whether one of them must be called."""

    model_config = ConfigDict(extra="forbid", strict=True)

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedTools(BaseModel):
    """The model sees all tools, and may call some."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["allowed_tools"]
    allowed_tools: Allowed


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedTools


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of one request that the model sees, and what it may do with them.

    Attributes:
        names: of tools that may be called.
        required: there must be a call.
        one: at most one call.
        enforced: a grammar makes every call well-formed; its arguments match the tool's schema if calls are
            required or the tool is strict or takes none, and are any object otherwise.
    """

    tools: tuple[Tool, ...]
    names: frozenset[str]
    required: bool
    one: bool
    enforced: bool

    def for_template(self) -> list[dict[str, Any]]:
        """The tools as the template shows them. Whether they are enforced is not the model's business."""
        return [tool.model_dump(exclude_unset=True, exclude={"function": {"strict"}}) for tool in self.tools]

    @property
    def schemas(self) -> dict[str, Mapping[str, Any]]:
        """Name of each tool that may be called -> schema of its arguments."""
        functions = [tool.function for tool in self.tools if tool.function.name in self.names]
        return {function.name: function.schema_of_arguments for function in functions}

    def wanted(self, replies: ReplyFormat, enforced: bool) -> WantedCalls | None:
        """What the grammar is made of; None where calls are not enforced."""
        if not enforced or replies.calls is None:
            return None
        functions = [tool.function for tool in self.tools]
        strict = {each.name for each in functions if self.required or each.strict or not each.parameters}
        schemas = {name: schema if name in strict else _ANYTHING for name, schema in self.schemas.items()}
        return WantedCalls(replies.calls, schemas, self.required, self.one)


def offer(tools: list[Tool] | None, choice: ToolChoice | None, parallel: bool | None) -> Offer | None:
    """What a request offers; None where the model shall see no tools.

    Raises:
        ArmillaryError: INVALID_REQUEST, naming the option.
    """
    if not tools:
        for param, value in (("tool_choice", choice not in (None, "none", "auto")), ("parallel_tool_calls", parallel)):
            if value:
                raise ArmillaryError(Code.INVALID_REQUEST, f"{param} must come with tools, given without", param)
        return None
    names = [tool.function.name for tool in tools]
    for place, tool in enumerate(tools):
        if tool.function.name in names[:place]:
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                f"tools must have names of their own, given {tool.function.name!r} twice",
                f"tools[{place}].function.name",
            )
        kind = (tool.function.parameters or {}).get("type", "object")
        if kind != "object":
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                f"parameters of a tool must be the schema of an object, given type {kind!r:.60}",
                f"tools[{place}].function.parameters",
            )
    if choice == "none":
        return None
    one = parallel is False
    strict = any(tool.function.strict for tool in tools)
    if isinstance(choice, NamedTool):
        return Offer(tuple(tools), _known([choice], names), True, True, True)
    allowed, mode = frozenset(names), choice
    if isinstance(choice, AllowedTools):
        allowed, mode = _known(choice.allowed_tools.tools, names), choice.allowed_tools.mode
    required = mode == "required"
    return Offer(tuple(tools), allowed, required, one, required or strict)


def _known(chosen: list[NamedTool], names: list[str]) -> frozenset[str]:
    """The names in a choice.

    Raises:
        ArmillaryError: INVALID_REQUEST where one is not that of a tool.
    """
    for tool in chosen:
        if tool.function.name not in names:
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                f"tool_choice must name one of the tools ({', '.join(names)[:200]}), given {tool.function.name!r:.80}",
                "tool_choice",
            )
    return frozenset(tool.function.name for tool in chosen)
