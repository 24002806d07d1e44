"""`/v1/responses`: a conversation in items, answered in items and, streamed, in typed events."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from armillary.errors import ArmillaryError
from armillary.server.chat import chat_parts
from armillary.server.errors import sayable
from armillary.server.generation import Generation, Part
from armillary.server.intake import new_id
from armillary.server.logprobs import TokenEntry, chat_form
from armillary.server.passages import Change, Kind, Passage, Passages, What, take_all
from armillary.server.reply import Reply
from armillary.server.responses_body import NAMES, Item, ResponsesBody
from armillary.server.served import Served
from armillary.server.sse import KEEP_ALIVE, Framing, typed_frame
from armillary.server.translate import chat_body, renamed

STATUSES = {"stop": "completed", "tool_calls": "completed"}
"""Reasons to finish -> status of the response; with any other it is incomplete."""
DETAILS = {"length": "max_output_tokens"}
"""Reasons to finish -> what `incomplete_details` calls them, where that is another word."""

Keep = Callable[[dict[str, Any]], bool]
"""Called with the whole response once it is over; says whether it is kept."""


def response_parts(body: ResponsesBody, served: Served, earlier: Sequence[Item]) -> list[Part]:
    """The one part of a response. Pure computation; long for long conversations.

    Args:
        earlier: items that the response goes on from.

    Raises:
        ArmillaryError: the conversation or an option is refused.
    """
    with renamed(NAMES):
        return chat_parts(chat_body(body.chat(earlier)), served, "resp_")


class ResponseShape:
    """Turns an answer into a response, or into its events. Read once: `stream` or `whole`."""

    def __init__(self, body: ResponsesBody, served: Served, generation: Generation, keep: Keep) -> None:
        self.framing = Framing(typed_frame, KEEP_ALIVE, b"", self._failed)
        self._keep = keep
        self._body = body
        self._served = served
        self._reply = Reply(generation)
        self._params = generation.params
        self._created = int(time.time())
        self._passages = Passages()
        self._ids: dict[int, str] = {}
        """Index of a passage -> id of its item."""
        self._sequence = 0

    async def stream(self) -> AsyncGenerator[list[Any], None]:
        """Events, as lists that go out together."""
        told = False
        async with aclosing(self._reply.deltas()) as news:
            async for deltas in news:
                events = []
                if not told:
                    told = True
                    events.append(self._event("response.created", response=self._response("in_progress")))
                    events.append(self._event("response.in_progress", response=self._response("in_progress")))
                for change in self._passages.take(deltas):
                    events += self._changed(change)
                yield events
        response = self._over()
        yield [self._event(f"response.{response['status']}", response=response)]

    async def whole(self) -> dict[str, Any]:
        """The one body of a response that is not streamed."""
        await take_all(self._reply, self._passages)
        return self._over()

    # ---------------------------------------------------------------- events

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return event

    def _changed(self, change: Change) -> Iterable[dict[str, Any]]:
        passage = change.passage
        place: dict[str, Any] = {"output_index": passage.index}
        where = {"item_id": self._id(passage), **place}
        part = {**where, "content_index": 0}
        match change.what:
            case What.OPENS:
                yield self._event("response.output_item.added", **place, item=self._item(passage, "in_progress"))
                if passage.kind is not Kind.CALL:
                    yield self._event("response.content_part.added", **part, part=self._part(passage, "", []))
            case What.GROWS if passage.kind is Kind.TEXT:
                logprobs = self._logprobs(change.entries)
                yield self._event("response.output_text.delta", **part, delta=change.text, logprobs=logprobs)
            case What.GROWS if passage.kind is Kind.REASONING:
                yield self._event("response.reasoning_text.delta", **part, delta=change.text)
            case What.GROWS:
                yield self._event("response.function_call_arguments.delta", **where, delta=change.text)
            case What.CLOSES:
                text = passage.text
                if passage.kind is Kind.TEXT:
                    logprobs = self._logprobs(passage.entries)
                    yield self._event("response.output_text.done", **part, text=text, logprobs=logprobs)
                elif passage.kind is Kind.REASONING:
                    yield self._event("response.reasoning_text.done", **part, text=text)
                else:
                    done = {"name": passage.name, "arguments": text}
                    yield self._event("response.function_call_arguments.done", **where, **done)
                if passage.kind is not Kind.CALL:
                    closed = self._part(passage, text, passage.entries)
                    yield self._event("response.content_part.done", **part, part=closed)
                status = self._status(passage)
                yield self._event("response.output_item.done", **place, item=self._item(passage, status))

    def _failed(self, error: ArmillaryError) -> list[dict[str, Any]]:
        """The last events of a response that fails in mid-stream."""
        message = sayable(error.message)
        response = self._response("failed")
        response["error"] = {"code": "server_error", "message": message}
        response["output"] = [self._item(passage, "incomplete") for passage in self._passages.passages]
        told = self._event("error", code=error.code.value, message=message, param=None)
        return [told, self._event("response.failed", response=response)]

    # ---------------------------------------------------------------- objects

    def _over(self) -> dict[str, Any]:
        """The response, complete; kept where it is to be."""
        finish = self._passages.finish or "stop"
        response = self._response(STATUSES.get(finish, "incomplete"))
        response["output"] = [self._item(passage, self._status(passage)) for passage in self._passages.passages]
        response["usage"] = self._usage()
        if response["status"] == "incomplete":
            response["incomplete_details"] = {"reason": DETAILS.get(finish, finish)}
        else:
            response["completed_at"] = int(time.time())
        response["store"] = self._keep(response)
        return response

    def _status(self, passage: Passage) -> str:
        """Of a closed passage. The last one of an answer that was cut is not complete."""
        passages = self._passages
        cut = passages.finish is not None and passages.finish not in STATUSES and passage is passages.passages[-1]
        return "incomplete" if cut else "completed"

    def _id(self, passage: Passage) -> str:
        prefix = {Kind.REASONING: "rs_", Kind.TEXT: "msg_", Kind.CALL: "fc_"}[passage.kind]
        return self._ids.setdefault(passage.index, new_id(prefix))

    def _item(self, passage: Passage, status: str) -> dict[str, Any]:
        """The item of a passage; without what the passage holds while it is in progress."""
        item: dict[str, Any] = {"id": self._id(passage), "type": "message", "status": status}
        content = [] if status == "in_progress" else [self._part(passage, passage.text, passage.entries)]
        if passage.kind is Kind.TEXT:
            return {**item, "role": "assistant", "content": content}
        if passage.kind is Kind.REASONING:
            return {**item, "type": "reasoning", "summary": [], "content": content, "encrypted_content": None}
        arguments = "" if status == "in_progress" else passage.text
        return {
            **item, "type": "function_call", "call_id": passage.call_id, "name": passage.name, "arguments": arguments,
        }  # fmt: skip

    def _part(self, passage: Passage, text: str, entries: Iterable[TokenEntry]) -> dict[str, Any]:
        if passage.kind is Kind.REASONING:
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs(entries)}

    def _logprobs(self, entries: Iterable[TokenEntry]) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = chat_form(entries, self._body.top_logprobs or 0)["content"]
        return content

    def _usage(self) -> dict[str, Any]:
        usage = self._reply.usage.body()
        reasoning = usage.get("completion_tokens_details", {}).get("reasoning_tokens", 0)
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {
                "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"], "cache_write_tokens": 0,
            },
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": usage["total_tokens"],
        }  # fmt: skip

    def _response(self, status: str) -> dict[str, Any]:
        body = self._body
        form = None if body.text is None or body.text.format is None else body.text.format
        choice = body.tool_choice
        return {
            "id": self._reply.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "metadata": body.metadata or {},
            "model": self._served.name,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {"effort": None if body.reasoning is None else body.reasoning.effort, "summary": None},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": body.store is not False,  # what is asked for, until it is known
            "temperature": self._params.temperature,
            "text": {"format": {"type": "text"} if form is None else form.model_dump(exclude_none=True, by_alias=True)},
            "tool_choice": "auto" if choice is None else choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": self._params.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }
