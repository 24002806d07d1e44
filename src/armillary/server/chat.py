"""`POST /v1/chat/completions`: a conversation in, the next message out.

Tools go to the model's chat template, and the model's tool call comes back as it wrote it, in the text of the
message: this release does not parse tool calls. What would need parsing (`tool_choice` other than auto and
none, `parallel_tool_calls: false`) is refused.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from armillary.server.fields import MAX_INT, GenerationFields
from armillary.server.generation import Generation, Part
from armillary.server.intake import check_length, new_id, order_of, sampling
from armillary.server.logprobs import TokenEntry, chat_form
from armillary.server.served import Served
from armillary.server.sse import UNNAMED

MAX_MESSAGES = 4096


class Message(BaseModel):
    """One message. Fields that other SDKs add are passed to the template, which takes what it knows of them."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _something_said(self) -> Message:
        if isinstance(self.content, list):
            for place, part in enumerate(self.content):
                if part.get("type") != "text" or not isinstance(part.get("text"), str):
                    kind = str(part.get("type"))[:40]
                    raise ValueError(f"content must hold parts of type text only, given {kind!r} at place {place}")
        if self.content is None and self.role != "assistant":
            raise ValueError(f"content must be a string or a list of text parts in a {self.role} message, given null")
        return self


class Function(BaseModel):
    """What a tool does, for the template."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None


class Tool(BaseModel):
    """A tool that the model may call."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    function: Function


class ResponseFormat(BaseModel):
    """Free text; formats that need a grammar are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]


class ChatBody(GenerationFields):
    """The body of a request."""

    messages: list[Message] = Field(
        min_length=1, max_length=MAX_MESSAGES, description="The conversation. Content is text, or a list of text parts."
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_INT, description="The newer name of max_tokens. Both unset: the rest of the context."
    )
    logprobs: bool | None = Field(None, description="Whether tokens carry their logprobs.")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="How many of the likeliest to list; needs logprobs."
    )
    tools: list[Tool] | None = Field(
        None, min_length=1, max_length=128, description="Shown to the model by its template. Calls come back as text."
    )
    tool_choice: Literal["auto", "none"] | None = Field(None, description="none: the template is shown no tools.")
    parallel_tool_calls: Literal[True] | None = Field(None, description="Calls are not parsed, so not limited either.")
    response_format: ResponseFormat | None = Field(None, description="Only text.")
    modalities: list[Literal["text"]] | None = Field(None, description="Only text.")
    chat_template_kwargs: dict[str, str | int | float | bool | None] | None = Field(
        None, max_length=32, description="Extension. More variables for the chat template."
    )

    @model_validator(mode="after")
    def _consistent(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs must come with logprobs = true, given without")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError(
                "max_completion_tokens must equal max_tokens where both are given, given "
                f"{self.max_completion_tokens} and {self.max_tokens}"
            )
        return self

    def template_messages(self) -> list[dict[str, Any]]:
        """The messages as the template sees them."""
        return [message.model_dump(exclude_unset=True) for message in self.messages]

    def template_tools(self) -> list[dict[str, Any]] | None:
        if self.tools is None or self.tool_choice == "none":
            return None
        return [tool.model_dump(exclude_unset=True) for tool in self.tools]


def chat_parts(body: ChatBody, served: Served) -> list[Part]:
    """The one part of a conversation. Pure computation; long for long conversations.

    Raises:
        ArmillaryError: the conversation or an option is refused.
    """
    params = sampling(
        body,
        served,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    messages = body.template_messages()
    check_length(sum(len(text) for message in messages for text in _texts(message.get("content"))), served, "messages")
    response_id = new_id("chatcmpl")
    prepared = served.preparer.chat(
        messages,
        params,
        tools=body.template_tools(),
        variables=body.chat_template_kwargs,
        request_id=response_id,
        **order_of(body, served),
    )
    return [Part(prepared, response_id, bool(body.logprobs))]


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or ()]


class ChatShape:
    """Turns deltas into the bodies of one response."""

    framing = UNNAMED

    def __init__(self, body: ChatBody, served: Served, generation: Generation) -> None:
        self._body = body
        self._generation = generation
        self._tail = {"created": int(time.time()), "model": served.name, "system_fingerprint": served.fingerprint}

    async def stream(self) -> AsyncGenerator[list[Any], None]:
        """Chunks, as lists that go out together. Every choice's role comes first, in order of index."""
        head: dict[str, Any] = {"id": self._generation.response_id, "object": "chat.completion.chunk", **self._tail}
        usage = {"usage": None} if self._body.usage_in_stream else {}
        roles_sent = False
        async with aclosing(self._generation.deltas()) as news:
            async for deltas in news:
                choices: list[dict[str, Any]] = []
                if self._generation.begun and not roles_sent:
                    roles_sent = True
                    role = {"role": "assistant", "content": ""}
                    choices += [self._chunk(index, role, None, None) for index in range(self._generation.count)]
                for delta in deltas:
                    if delta.text or delta.entries:
                        content = {"content": delta.text}
                        choices.append(self._chunk(delta.index, content, self._logprobs(delta.entries), None))
                    if delta.finish is not None:
                        choices.append(self._chunk(delta.index, {}, None, delta.finish))
                yield [{**head, "choices": [choice], **usage} for choice in choices]
        if self._body.usage_in_stream:
            yield [{**head, "choices": [], "usage": self._generation.usage.body()}]

    async def whole(self) -> dict[str, Any]:
        """The one body of a response that is not streamed."""
        choices = [
            {
                "index": delta.index,
                "message": {"role": "assistant", "content": delta.text, "refusal": None},
                "logprobs": self._logprobs(delta.entries),
                "finish_reason": delta.finish,
            }
            for delta in await self._generation.whole()
        ]
        usage = self._generation.usage.body()
        return {
            "id": self._generation.response_id,
            "object": "chat.completion",
            **self._tail,
            "choices": choices,
            "usage": usage,
        }

    def _logprobs(self, entries: list[TokenEntry]) -> dict[str, Any] | None:
        return chat_form(entries, self._body.top_logprobs or 0) if self._body.logprobs else None

    @staticmethod
    def _chunk(
        index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish: str | None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
