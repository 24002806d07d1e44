"""The body of `POST /v1/messages`, and the chat request that it amounts to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import to_json

from armillary.server.chat import MAX_MESSAGES
from armillary.server.fields import MAX_INT, MAX_STOPS, AnyBody, AnyGeneration, StopText, tag_of

NAMES = {
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
    "max_completion_tokens": "max_tokens",
    "prompt": "messages",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "].function.parameters": "].input_schema",
    "].function": "]",
}
"""Options of the chat request -> what they are called here."""
KINDS = ("text", "tool_use", "tool_result", "thinking")


class CacheControl(BaseModel):
    """Where a client would like a prefix to be cached. Not used: the prefix cache finds equal prefixes itself."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class _Block(BaseModel):
    """Blocks go back and forth between client and server, and other servers add fields to them: extra ones pass."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    cache_control: CacheControl | None = None


class TextBlock(_Block):
    """A piece of a text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(_Block):
    """What the model thought. The signature is not checked: thoughts go where the chat template puts them."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(_Block):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: str = Field(min_length=1, max_length=512)
    name: str = Field(min_length=1, max_length=512)
    input: dict[str, Any]


def joined(value: Any) -> Any:
    """A text out of text blocks, if that is what was given; the field's own check judges everything else."""
    if not isinstance(value, list):
        return value
    for place, block in enumerate(value):
        kind = block.get("type") if isinstance(block, dict) else type(block).__name__
        if kind != "text" or not isinstance(block.get("text"), str):
            raise ValueError(
                f"must hold blocks of type text, given {str(kind)[:40]!r} at place {place}: this server reads text only"
            )
    return "\n".join(block["text"] for block in value)


class ToolResultBlock(_Block):
    """What came of a call."""

    type: Literal["tool_result"]
    tool_use_id: str = Field(min_length=1, max_length=512)
    content: str | None = None
    is_error: bool | None = Field(None, description="true: the model reads the content after `Error: `.")

    _joined = field_validator("content", mode="before", json_schema_input_type=str | list[TextBlock] | None)(joined)

    @property
    def text(self) -> str:
        return f"Error: {self.content or ''}" if self.is_error else self.content or ""


Block = Annotated[
    Annotated[TextBlock, Tag("[text]")]
    | Annotated[ThinkingBlock, Tag("[thinking]")]
    | Annotated[ToolUseBlock, Tag("[tool_use]")]
    | Annotated[ToolResultBlock, Tag("[tool_result]")],
    Discriminator(tag_of),
]


class InputMessage(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    role: Literal["user", "assistant"]
    content: list[Block]

    @field_validator("content", mode="before", json_schema_input_type=str | list[Block])
    @classmethod
    def _as_blocks(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [{"type": "text", "text": value}]
        for place, block in enumerate(value if isinstance(value, list) else ()):
            kind = block.get("type") if isinstance(block, dict) else type(block).__name__
            if kind not in KINDS:
                raise ValueError(
                    f"must hold blocks of type {', '.join(KINDS)}, given {str(kind)[:40]!r} at place {place}: "
                    "this server reads text only"
                )
        return value

    @model_validator(mode="after")
    def _own_blocks(self) -> InputMessage:
        theirs = (ToolResultBlock,) if self.role == "assistant" else (ThinkingBlock, ToolUseBlock)
        for place, block in enumerate(self.content):
            if isinstance(block, theirs):
                raise ValueError(f"must not hold a {block.type} block in a turn of the {self.role}, given at {place}")
        return self


class InputTool(BaseModel):
    """A tool that the model may call."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    type: Literal["custom"] | None = None
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: CacheControl | None = None

    def chat(self) -> dict[str, Any]:
        """As chat has it."""
        about = {"description": self.description, "strict": self.strict}
        given = {name: value for name, value in about.items() if value is not None}
        return {"type": "function", "function": {"name": self.name, **given, "parameters": self.input_schema}}


class ToolChoice(BaseModel):
    """Whether the model may (`auto`), must (`any`), or must not (`none`) call, or which tool it must call."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["auto", "any", "none", "tool"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = Field(None, description="true: at most one call.")

    @model_validator(mode="after")
    def _named(self) -> ToolChoice:
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("must have a name where its type is tool, and only there")
        return self

    def chat(self) -> str | dict[str, Any]:
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return "required" if self.type == "any" else self.type


class Thinking(BaseModel):
    """Whether to think aloud before the answer. A budget is refused: it could not be kept to."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["adaptive", "disabled"]


class OutputFormat(BaseModel):
    """JSON of a schema."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(BaseModel):
    """The form of the text, and how much to think before it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="For models whose chat template knows it, or whose thinking it can turn on."
    )
    format: OutputFormat | None = None


class Metadata(BaseModel):
    """Not used."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: str | None = None


class CountTokensBody(AnyBody):
    """A conversation with its tools."""

    model: str = Field(min_length=1, max_length=512, description="The served name, as `/v1/models` lists it.")
    messages: list[InputMessage] = Field(
        min_length=1, max_length=MAX_MESSAGES, description="The turns of user and assistant. The last is the user's."
    )
    system: str | None = Field(None, description="What comes before the first turn: a text, or text blocks.")
    tools: list[InputTool] | None = Field(None, max_length=128, description="Tools that the model may call.")
    tool_choice: ToolChoice | None = Field(None, description="Whether it may, must or must not call, or what.")
    thinking: Thinking | None = Field(None, description="Whether to think aloud before the answer.")
    output_config: OutputConfig | None = Field(None, description="The form of the text.")
    cache_control: CacheControl | None = Field(None, description="Not used: equal prefixes are found anyhow.")

    _joined = field_validator("system", mode="before", json_schema_input_type=str | list[TextBlock] | None)(joined)

    @model_validator(mode="after")
    def _one_mind(self) -> CountTokensBody:
        if self._thoughtless and self.output_config is not None and self.output_config.effort is not None:
            raise ValueError("output_config.effort must not come with thinking of type disabled")
        return self

    @field_validator("messages")
    @classmethod
    def _ends_with_user(cls, value: list[InputMessage]) -> list[InputMessage]:
        if value[-1].role != "user":
            raise ValueError("must end with a turn of the user: answers cannot be begun for the model here")
        return value

    @property
    def names(self) -> dict[str, str]:
        """Options of the chat request -> what they are called here."""
        effort = "thinking" if self._thoughtless else "output_config.effort"
        return NAMES | {"reasoning_effort": effort}

    @property
    def _thoughtless(self) -> bool:
        return self.thinking is not None and self.thinking.type == "disabled"

    @property
    def _effort(self) -> str | None:
        if self._thoughtless:
            return "none"
        return None if self.output_config is None else self.output_config.effort

    def conversation(self) -> dict[str, Any]:
        """The part of a chat request that makes its prompt."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        values: dict[str, Any] = {"model": self.model, "messages": messages + turns(self.messages)}
        if self.tools:
            values["tools"] = [tool.chat() for tool in self.tools]
        if self.tool_choice is not None:
            values["tool_choice"] = self.tool_choice.chat()
            if self.tool_choice.disable_parallel_tool_use:
                values["parallel_tool_calls"] = False
        if self._effort is not None:
            values["reasoning_effort"] = self._effort
        if self.output_config is not None and self.output_config.format is not None:
            form = {"name": "answer", "schema": self.output_config.format.schema_, "strict": True}
            values["response_format"] = {"type": "json_schema", "json_schema": form}
        return values


class MessagesBody(CountTokensBody, AnyGeneration):
    """The body of a request."""

    model: str = Field(min_length=1, max_length=512, description="The served name, as `/v1/models` lists it.")
    max_tokens: int = Field(ge=1, le=MAX_INT, description="Most tokens of the answer, thinking included.")
    stop_sequences: list[StopText] | None = Field(
        None, max_length=MAX_STOPS, description="The text ends before any of these."
    )
    temperature: float | None = Field(None, ge=0, le=1, description="0 is greedy.")
    top_p: float | None = Field(
        None, gt=0, le=1, description="Draw from the likeliest tokens that together have this probability."
    )
    metadata: Metadata | None = Field(None, description="Not used.")
    service_tier: Literal["auto", "standard_only"] | None = Field(None, description="There is one tier.")

    def chat(self) -> dict[str, Any]:
        """The chat request that this amounts to."""
        values = self.model_dump(include={*AnyGeneration.model_fields}, exclude_none=True)
        values |= self.conversation() | {"max_completion_tokens": self.max_tokens}
        more = {"stop": self.stop_sequences, "temperature": self.temperature, "top_p": self.top_p}
        return values | {name: value for name, value in more.items() if value is not None}


def turns(messages: list[InputMessage]) -> list[dict[str, Any]]:
    """Turns as chat has them. Tool results are messages of their own; turns of one side in a row are one."""
    result: list[dict[str, Any]] = []

    def of(role: str) -> dict[str, Any]:
        if not result or result[-1]["role"] != role:
            result.append({"role": role, "content": None})
        return result[-1]

    def add(message: dict[str, Any], name: str, text: str) -> None:
        before = message.get(name)
        message[name] = text if before is None else f"{before}\n{text}"

    for message in messages:
        turn = of("assistant") if message.role == "assistant" else None
        for block in message.content:
            match block:
                case TextBlock():
                    add(of(message.role), "content", block.text)
                case ThinkingBlock() if turn is not None:
                    add(turn, "reasoning_content", block.thinking)
                case ToolUseBlock() if turn is not None:
                    function = {"name": block.name, "arguments": to_json(block.input).decode()}
                    call = {"id": block.id, "type": "function", "function": function}
                    turn.setdefault("tool_calls", []).append(call)
                case ToolResultBlock():
                    result.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": block.text})
        if not message.content:
            of(message.role)["content"] = of(message.role)["content"] or ""
    return result
