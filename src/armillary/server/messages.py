"""`/v1/messages`: Anthropic's dialect, a conversation in blocks, answered in blocks and typed events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from pydantic_core import from_json
from starlette.responses import Response

from armillary.server.chat import chat_parts
from armillary.server.endpoint import compute, generate, json_response
from armillary.server.errors import anthropic_error_body
from armillary.server.generation import Generation, Part
from armillary.server.messages_answer import MessageAnswer, MessageEvent, TokenCount
from armillary.server.messages_body import CountTokensBody, MessagesBody
from armillary.server.openapi import described
from armillary.server.passages import Change, Kind, Passage, Passages, What, take_all
from armillary.server.reply import Reply
from armillary.server.served import Served
from armillary.server.service import Service
from armillary.server.sse import Framing, typed_frame
from armillary.server.translate import chat_body, prompt_tokens, renamed

FRAMING = Framing(typed_frame, typed_frame({"type": "ping"}), b"", lambda error: [anthropic_error_body(error)])
STOP_REASONS = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}
"""Reasons to finish -> what they are called here; any other is called as it is."""


def add_messages(app: FastAPI, service: Service) -> None:
    """Add both endpoints."""

    @app.post("/v1/messages")
    @described(body=MessagesBody, answer=MessageAnswer, stream=MessageEvent)
    async def create_message(request: Request) -> Response:
        """Answer a conversation in Anthropic's dialect."""
        return await generate(request, service, "messages", MessagesBody, _parts, MessageShape)

    @app.post("/v1/messages/count_tokens")
    @described(body=CountTokensBody, answer=TokenCount)
    async def count_message_tokens(request: Request) -> Response:
        """How many tokens the prompt of a conversation has."""
        return json_response(await compute(request, service, CountTokensBody, _count))


def _parts(body: MessagesBody, served: Served) -> list[Part]:
    with renamed(body.names):
        return chat_parts(chat_body(body.chat()), served, "msg_")


def _count(body: CountTokensBody, served: Served) -> TokenCount:
    with renamed(body.names):
        return {"input_tokens": len(prompt_tokens(chat_body(body.conversation()), served))}


class MessageShape:
    """Turns an answer into a message, or into its events. Read once: `stream` or `whole`."""

    framing = FRAMING

    def __init__(self, body: MessagesBody, served: Served, generation: Generation) -> None:
        self._served = served
        self._generation = generation
        self._reply = Reply(generation)
        self._passages = Passages()

    async def stream(self) -> AsyncGenerator[list[Any], None]:
        """Events, as lists that go out together."""
        told = False
        async with aclosing(self._reply.deltas()) as news:
            async for deltas in news:
                events: list[Any] = []
                if not told:
                    told = True
                    events.append({"type": "message_start", "message": self._message()})
                for change in self._passages.take(deltas):
                    events += _changed(change)
                yield events
        reason, sequence = self._stop()
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        yield [{"type": "message_delta", "delta": delta, "usage": self._usage()}, {"type": "message_stop"}]

    async def whole(self) -> dict[str, Any]:
        """The one body of an answer that is not streamed."""
        await take_all(self._reply, self._passages)
        message = self._message()
        message["content"] = [block_of(passage) for passage in self._passages.passages]
        message["stop_reason"], message["stop_sequence"] = self._stop()
        return message

    def _message(self) -> dict[str, Any]:
        """The message as far as it is known before its content."""
        return {
            "id": self._reply.id,
            "type": "message",
            "role": "assistant",
            "model": self._served.name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(),
        }

    def _stop(self) -> tuple[str, str | None]:
        """Why the answer ended, and which stop sequence did it."""
        finish = self._passages.finish or "stop"
        sequence = self._generation.stop_string(0) if finish == "stop" else None
        return ("stop_sequence" if sequence is not None else STOP_REASONS.get(finish, finish)), sequence

    def _usage(self) -> dict[str, int]:
        """Token counts so far. Those that the prefix cache had are counted apart, as this dialect has it."""
        usage = self._reply.usage
        return {
            "input_tokens": usage.prompt - usage.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached,
            "output_tokens": usage.completion,
        }


def _changed(change: Change) -> Iterator[dict[str, Any]]:
    passage = change.passage
    place = {"index": passage.index}
    match change.what:
        case What.OPENS:
            yield {"type": "content_block_start", **place, "content_block": block_of(replace(passage, pieces=[]))}
        case What.GROWS:
            if passage.kind is Kind.TEXT:
                delta = {"type": "text_delta", "text": change.text}
            elif passage.kind is Kind.REASONING:
                delta = {"type": "thinking_delta", "thinking": change.text}
            else:
                delta = {"type": "input_json_delta", "partial_json": change.text}
            yield {"type": "content_block_delta", **place, "delta": delta}
        case What.CLOSES:
            yield {"type": "content_block_stop", **place}


def block_of(passage: Passage) -> dict[str, Any]:
    """The content block that a passage is, as far as it has come."""
    text = passage.text
    if passage.kind is Kind.TEXT:
        return {"type": "text", "text": text}
    if passage.kind is Kind.REASONING:
        return {"type": "thinking", "thinking": text, "signature": ""}
    try:
        # What was cut in the middle is given as far as it goes, as the client does with the pieces of a stream.
        given = from_json(text, allow_partial=True) if text else {}
    except ValueError:
        # JSON, yet not for every parser: half of a surrogate pair, very deep, a very long number. As it was written.
        given = {"json": text}
    return {"type": "tool_use", "id": passage.call_id, "name": passage.name, "input": given}
