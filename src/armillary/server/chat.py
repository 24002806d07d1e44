"""`POST /v1/chat/completions`: a conversation in, the next message out."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from armillary.models.reply import Message as ReplyMessage
from armillary.server.fields import MAX_INT, GenerationFields
from armillary.server.generation import Generation, Part
from armillary.server.intake import check_length, new_id, order_of, sampling
from armillary.server.logprobs import TokenEntry, chat_form
from armillary.server.reply import CallArguments, CallStart, Content, Finish, Reasoning, Reply, ReplyPart
from armillary.server.reply_plan import ReplyPlan
from armillary.server.served import Served
from armillary.server.sse import UNNAMED
from armillary.server.tools import MAX_TOOLS, Tool, ToolChoice, offer

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
        None, min_length=1, max_length=MAX_TOOLS, description="Functions that the model may call."
    )
    tool_choice: ToolChoice | None = Field(
        None,
        description="auto: the model decides. none: it is shown no tools. required: at least one call. A tool by name: "
        "exactly that call. The last two are enforced by a grammar.",
    )
    parallel_tool_calls: bool | None = Field(
        None, description="Unset: true. false: the answer ends with its first call."
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None,
        description="For models whose chat template knows it, or whose reasoning it can turn on and off. `max` is what "
        "clients of `/v1/messages` call the most.",
    )
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


def chat_parts(body: ChatBody, served: Served, prefix: str = "chatcmpl-") -> list[Part]:
    """The one part of a conversation. Pure computation; long for long conversations.

    Args:
        prefix: of the response's id; dialects have their own.

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
    offered = offer(body.tools, body.tool_choice, body.parallel_tool_calls)
    plan = ReplyPlan(served.preparer.replies, served.tokenizer, offered, body.wanted)
    plan.check()
    response_id = new_id(prefix)
    prepared = served.preparer.chat(
        messages,
        params,
        tools=None if offered is None else offered.for_template(),
        variables=plan.variables(body.chat_template_kwargs, body.reasoning_effort),
        constrain=plan.grammar,
        request_id=response_id,
        **order_of(body, served),
    )
    return [Part(prepared, response_id, bool(body.logprobs), reading=plan.reading(prepared.request.prompt, params))]


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or ()]


class ChatShape:
    """Turns a reply into the bodies of one response. Read once: `stream` or `whole`."""

    framing = UNNAMED

    def __init__(self, body: ChatBody, served: Served, generation: Generation) -> None:
        self._body = body
        self._reply = Reply(generation)
        self._tail = {"created": int(time.time()), "model": served.name, "system_fingerprint": served.fingerprint}

    async def stream(self) -> AsyncGenerator[list[Any], None]:
        """Chunks, as lists that go out together. Every choice's role comes first, in order of index."""
        reply = self._reply
        head: dict[str, Any] = {"id": reply.id, "object": "chat.completion.chunk", **self._tail}
        usage = {"usage": None} if self._body.usage_in_stream else {}
        # Null where calls may come instead of content, as OpenAI has it.
        role = {"role": "assistant", "content": None if self._body.tools and self._body.tool_choice != "none" else ""}
        roles_sent = False
        async with aclosing(reply.deltas()) as news:
            async for deltas in news:
                choices: list[dict[str, Any]] = []
                if reply.begun and not roles_sent:
                    roles_sent = True
                    choices += [_chunk(index, role, None, None) for index in range(reply.count)]
                for delta in deltas:
                    finish = delta.part.reason if isinstance(delta.part, Finish) else None
                    choices.append(_chunk(delta.choice, _delta(delta.part), self._logprobs(delta.entries), finish))
                yield [{**head, "choices": [choice], **usage} for choice in choices]
        if self._body.usage_in_stream:
            yield [{**head, "choices": [], "usage": reply.usage.body()}]

    async def whole(self) -> dict[str, Any]:
        """The one body of a response that is not streamed."""
        choices = [
            {
                "index": whole.choice,
                "message": _message(whole.message),
                "logprobs": chat_form(whole.entries, self._body.top_logprobs or 0) if self._body.logprobs else None,
                "finish_reason": whole.finish,
            }
            for whole in await self._reply.whole()
        ]
        usage = self._reply.usage.body()
        return {
            "id": self._reply.id,
            "object": "chat.completion",
            **self._tail,
            "choices": choices,
            "usage": usage,
        }

    def _logprobs(self, entries: list[TokenEntry]) -> dict[str, Any] | None:
        return chat_form(entries, self._body.top_logprobs or 0) if self._body.logprobs and entries else None


def _chunk(index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _delta(part: ReplyPart | Finish) -> dict[str, Any]:
    match part:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning_content": text, "reasoning": text}
        case CallStart(index, call_id, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        case Finish():
            return {}


def _message(message: ReplyMessage) -> dict[str, Any]:
    """The message of a choice. Clients differ in the name that they read reasoning by, so it has both."""
    body: dict[str, Any] = {"role": "assistant", "content": message.content, "refusal": None}
    if message.reasoning:
        body |= {"reasoning_content": message.reasoning, "reasoning": message.reasoning}
    if message.calls:
        body["content"] = message.content or None
        body["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.calls
        ]
    return body
