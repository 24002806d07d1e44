"""What `/v1/responses` answers, as types: for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

Status = Literal["in_progress", "completed", "incomplete"]


class ResponseLogprob(TypedDict):
    """One token of a text."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: NotRequired[list[ResponseLogprob]]


class OutputText(TypedDict):
    """A piece of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ResponseLogprob]


class ReasoningText(TypedDict):
    """A piece of what the model thought."""

    type: Literal["reasoning_text"]
    text: str


class OutputMessage(TypedDict):
    """What the model said."""

    id: str
    type: Literal["message"]
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class OutputReasoning(TypedDict):
    """What it thought."""

    id: str
    type: Literal["reasoning"]
    status: Status
    summary: list[Any]
    content: list[ReasoningText]
    encrypted_content: None


class OutputCall(TypedDict):
    """A function that it calls; `arguments` is JSON text."""

    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str
    name: str
    arguments: str


OutputItem = OutputMessage | OutputReasoning | OutputCall


class IncompleteDetails(TypedDict):
    """Why a response is not complete: `max_output_tokens`, or the engine's reason."""

    reason: str


class ResponseFailure(TypedDict):
    """Why a response failed in mid-stream."""

    code: Literal["server_error"]
    message: str


class CachedTokens(TypedDict):
    """Of the input, found in the prefix cache."""

    cached_tokens: int
    cache_write_tokens: int


class ReasoningTokens(TypedDict):
    """Of the output, spent on reasoning."""

    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """Token counts."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class ResponseAnswer(TypedDict):
    """A response. What the request set comes back in it."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: Literal[False]
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None


class ResponseEvent(TypedDict):
    """One event of a stream. `type` says which of the other members it has."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "error",
    ]
    sequence_number: int
    response: NotRequired[ResponseAnswer]
    output_index: NotRequired[int]
    content_index: NotRequired[int]
    item_id: NotRequired[str]
    item: NotRequired[OutputItem]
    part: NotRequired[OutputText | ReasoningText]
    delta: NotRequired[str]
    text: NotRequired[str]
    name: NotRequired[str]
    arguments: NotRequired[str]
    logprobs: NotRequired[list[ResponseLogprob]]
    code: NotRequired[str]
    message: NotRequired[str]
    param: NotRequired[str | None]


class DeletedResponse(TypedDict):
    """That a response is no longer kept."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]
