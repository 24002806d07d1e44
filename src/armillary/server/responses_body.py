"""The body of `POST /v1/responses`, and the chat request that it amounts to.

Input items become messages, flat tools become nested ones, `text.format` becomes `response_format`: from there on the
request is checked, tokenised and constrained as every other conversation is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, field_validator, model_validator

from armillary.server.fields import MAX_INT, AnyGeneration, Harmless, tag_of

MAX_ITEMS = 4096
LOGPROBS = "message.output_text.logprobs"
NAMES = {
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "messages": "input",
    "prompt": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "].function": "]",
}
"""Options of the chat request -> what they are called here."""


class _Item(BaseModel):
    """Items go back and forth between client and server, and other servers add fields to them: extra ones pass."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class TextPart(_Item):
    """A piece of a text."""

    type: Literal["input_text", "output_text"]
    text: str


class RefusalPart(_Item):
    """What a model said instead of an answer; other servers make such."""

    type: Literal["refusal"]
    refusal: str


class ReasoningPart(_Item):
    """A piece of what a model thought."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


Text = str | list[TextPart | RefusalPart]


def joined(value: Any) -> Any:
    """A text out of parts, if that is what was given; the field's own check judges everything else."""
    if not isinstance(value, list):
        return value
    texts = []
    for place, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
        if kind not in ("input_text", "output_text", "refusal"):
            raise ValueError(
                f"must hold parts of type input_text or output_text, given {str(kind)[:40]!r} at place {place}: "
                "this server reads text only"
            )
        if not isinstance(text, str):
            raise ValueError(f"must hold parts with a text, given none at place {place}")
        texts.append(text)
    return "\n".join(texts)


class MessageItem(_Item):
    """A message of either side."""

    type: Literal["message"] | None = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str

    _joined = field_validator("content", mode="before", json_schema_input_type=Text)(joined)


class FunctionCallItem(_Item):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1, max_length=512)
    name: str = Field(min_length=1, max_length=512)
    arguments: str


class FunctionCallOutputItem(_Item):
    """What came of a call."""

    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1, max_length=512)
    output: str

    _joined = field_validator("output", mode="before", json_schema_input_type=Text)(joined)


class ReasoningItem(_Item):
    """What the model thought before it answered; its summary where the thoughts themselves are not there."""

    type: Literal["reasoning"]
    summary: list[ReasoningPart] = Field(default_factory=list)
    content: list[ReasoningPart] | None = None
    encrypted_content: None = Field(None, description="Nothing is encrypted here, so nothing can be read so.")

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content or self.summary)


Item = Annotated[
    Annotated[MessageItem, Tag("[message]")]
    | Annotated[FunctionCallItem, Tag("[function_call]")]
    | Annotated[FunctionCallOutputItem, Tag("[function_call_output]")]
    | Annotated[ReasoningItem, Tag("[reasoning]")],
    Discriminator(lambda value: tag_of(value, unsaid="message")),
]
KINDS = ("message", "function_call", "function_call_output", "reasoning")
ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])


class FunctionTool(BaseModel):
    """A tool that the model may call."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    type: Literal["function"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def nested(self) -> dict[str, Any]:
        """As chat has it."""
        return {"type": "function", "function": self.model_dump(exclude={"type"}, exclude_none=True)}


class NamedFunction(BaseModel):
    """The one tool that must be called."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    name: str


class ResponseTextFormat(BaseModel):
    """What form the text has. `name` and `schema` come with `json_schema`, and only there."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseTextFormat:
        given = self.model_fields_set - {"type"}
        if self.type != "json_schema" and given:
            raise ValueError(f"must have nothing beside its type {self.type}, given {', '.join(sorted(given))}")
        if self.type == "json_schema" and (self.name is None or self.schema_ is None):
            raise ValueError("must have name and schema where its type is json_schema")
        return self

    def chat(self) -> dict[str, Any]:
        """As chat's `response_format`."""
        if self.type != "json_schema":
            return {"type": self.type}
        return {
            "type": "json_schema",
            "json_schema": self.model_dump(exclude={"type"}, exclude_none=True, by_alias=True),
        }


class ResponseTextOptions(BaseModel):
    """How the text is to be."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: ResponseTextFormat | None = Field(None, description="Free text, a JSON object, or JSON of a schema.")
    verbosity: Literal["medium"] | None = Field(None, description="Only what is the case anyhow.")


class ReasoningOptions(BaseModel):
    """How the model thinks before it answers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        None, description="For models whose chat template knows it, or whose reasoning it can turn on and off."
    )
    summary: None = Field(None, description="Reasoning is shown as it is, not summarised.")


class ResponseStreamOptions(BaseModel):
    """What a stream carries besides text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_obfuscation: Literal[False] | None = Field(
        None, description="Padding against traffic analysis is not made; only false is accepted."
    )


class ResponsesBody(Harmless, AnyGeneration):
    """The body of a request."""

    input: list[Item] = Field(
        max_length=MAX_ITEMS, description="A text, or the items of a conversation: messages, calls, outputs, reasoning."
    )
    instructions: str | None = Field(None, description="A system message before the input. Not part of what is kept.")
    previous_response_id: str | None = Field(
        None, min_length=1, max_length=512, description="Go on from a response that was stored."
    )
    store: bool | None = Field(
        None, description="Whether to keep the response for `previous_response_id` and for reading it again."
    )
    max_output_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_INT,
        description="Most tokens of the answer, reasoning included. Unset: what the context has.",
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(
        None, gt=0, le=1, description="Draw from the likeliest tokens that together have this probability."
    )
    include: list[Literal["message.output_text.logprobs"]] | None = Field(
        None, max_length=8, description="What to answer besides: the logprobs of the text's tokens."
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="How many of the likeliest to list; needs `include`."
    )
    tools: list[FunctionTool] | None = Field(None, max_length=128, description="Functions that the model may call.")
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = Field(
        None, description="Whether it may, must, or must not call, or which function it must call."
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call in a response.")
    text: ResponseTextOptions | None = Field(None, description="The form of the text.")
    reasoning: ReasoningOptions | None = Field(None, description="How the model thinks before it answers.")
    stream_options: ResponseStreamOptions | None = Field(None, description="Needs `stream`.")
    truncation: Literal["disabled"] | None = Field(None, description="A conversation that is too long is refused.")
    background: Literal[False] | None = Field(None, description="Responses are made while the client waits.")
    max_tool_calls: None = Field(None, description="Limits tools that a server runs, of which there are none.")
    conversation: None = Field(None, description="Not kept here; see `previous_response_id`.")
    prompt: None = Field(None, description="Prompt templates are not kept here.")

    @property
    def continues(self) -> bool:
        return self.previous_response_id is not None

    @field_validator("input", mode="before", json_schema_input_type=str | list[Item])
    @classmethod
    def _as_items(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [{"role": "user", "content": value}]
        for place, item in enumerate(value if isinstance(value, list) else ()):
            kind = item.get("type") or "message" if isinstance(item, dict) else type(item).__name__
            if kind not in KINDS:
                raise ValueError(
                    f"must hold items of type {', '.join(KINDS)}, given {str(kind)[:40]!r} at place {place}"
                )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> ResponsesBody:
        if not self.input and self.previous_response_id is None:
            raise ValueError("input must hold an item, given an empty list and no previous_response_id")
        if self.top_logprobs is not None and not self.include:
            raise ValueError(f"top_logprobs must come with include = [{LOGPROBS!r}], given without")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options must come with stream = true, given stream = false")
        return self

    def chat(self, earlier: Sequence[Item]) -> dict[str, Any]:
        """The chat request that this amounts to.

        Args:
            earlier: items of the responses that this one goes on from.
        """
        messages = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        choice = self.tool_choice
        named = {"type": "function", "function": {"name": choice.name}} if isinstance(choice, NamedFunction) else choice
        form = None if self.text is None or self.text.format is None else self.text.format.chat()
        values = self.model_dump(include={*AnyGeneration.model_fields}, exclude_none=True) | {
            "messages": messages + conversation([*earlier, *self.input]),
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "logprobs": True if self.include else None,
            "top_logprobs": self.top_logprobs,
            "tools": [tool.nested() for tool in self.tools] if self.tools else None,
            "tool_choice": named,
            "parallel_tool_calls": self.parallel_tool_calls if self.tools else None,
            "reasoning_effort": None if self.reasoning is None else self.reasoning.effort,
            "response_format": form,
        }
        return {name: value for name, value in values.items() if value is not None}


def conversation(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Items as messages: what the model thought, said and called in one turn is one message of the assistant."""
    messages: list[dict[str, Any]] = []
    turn: dict[str, Any] | None = None
    for item in items:
        of_model = isinstance(item, (ReasoningItem, FunctionCallItem))
        of_model = of_model or (isinstance(item, MessageItem) and item.role == "assistant")
        if not of_model:
            turn = None
        elif turn is None or _begins_another(turn, item):
            turn = {"role": "assistant", "content": None}
            messages.append(turn)
        match item:
            case MessageItem():
                if turn is None:
                    messages.append({"role": item.role, "content": item.content})
                else:
                    turn["content"] = item.content
            case FunctionCallOutputItem():
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
            case ReasoningItem() if turn is not None:
                turn["reasoning_content"] = turn.get("reasoning_content", "") + item.text
            case FunctionCallItem() if turn is not None:
                function = {"name": item.name, "arguments": item.arguments}
                turn.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
    return messages


def _begins_another(turn: dict[str, Any], item: Item) -> bool:
    """Whether an item cannot belong to a turn: one says one thing, and thinks before that."""
    said = turn["content"] is not None or "tool_calls" in turn
    return said and not isinstance(item, FunctionCallItem)
