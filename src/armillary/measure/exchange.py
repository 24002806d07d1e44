"""One streamed request to an OpenAI-compatible server, timed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from armillary.measure.record import Outcome, RequestRecord

SHED_STATUSES = frozenset({429, 503})
_ERROR_CHARACTERS = 300


@dataclass(frozen=True)
class Exchange:
    """Where requests go and how long to wait for an answer.

    Attributes:
        client: an open client; the caller closes it.
        url: of the endpoint, complete.
        timeout: seconds for a whole request, from the moment it is sent.
        clock: seconds from the run's start.
    """

    client: httpx.AsyncClient
    url: str
    timeout: float
    clock: Callable[[], float]

    async def send(self, body: dict[str, Any], record: RequestRecord, heard: list[str] | None = None) -> RequestRecord:
        """Send `body`, fill in `record` and return it. Never raises for what a server or network does.

        Args:
            heard: is given the generated text, piece by piece; None: it is not kept.
        """
        content = json.dumps(body).encode()
        # Not compressed: nothing is between this and what the server wrote.
        headers = {"content-type": "application/json", "accept": "text/event-stream", "accept-encoding": "identity"}
        record.sent = self.clock()
        try:
            async with (
                asyncio.timeout(self.timeout),
                self.client.stream("POST", self.url, content=content, headers=headers) as response,
            ):
                record.status = response.status_code
                if response.status_code >= 400:
                    await self._refused(response, record)
                else:
                    await self._answer(response, record, heard)
        except TimeoutError:
            self._ended(record, Outcome.TIMEOUT, f"no complete answer within {self.timeout:g} s")
        except httpx.HTTPError as error:
            began = record.status is not None
            self._ended(record, Outcome.FAILED if began else Outcome.UNREACHED, f"{type(error).__name__}: {error}")
        return record

    def _ended(self, record: RequestRecord, outcome: Outcome, error: str) -> None:
        record.outcome = outcome
        record.error = error[:_ERROR_CHARACTERS]
        record.end = self.clock()

    async def _refused(self, response: httpx.Response, record: RequestRecord) -> None:
        text = (await response.aread()).decode("utf-8", "replace")
        outcome = Outcome.SHED if response.status_code in SHED_STATUSES else Outcome.REFUSED
        self._ended(record, outcome, _message(text))

    async def _answer(self, response: httpx.Response, record: RequestRecord, heard: list[str] | None) -> None:
        arrivals = 0
        last: float | None = None
        done = False
        async for data, now in self._events(response):
            if data == b"[DONE]":
                done = True
                continue
            try:
                event = json.loads(data)
            except ValueError:
                return self._ended(record, Outcome.FAILED, f"an event is not JSON: {data[:80]!r}")
            if not isinstance(event, dict):
                return self._ended(record, Outcome.FAILED, f"an event is not a JSON object: {data[:80]!r}")
            if event.get("error"):
                return self._ended(record, Outcome.FAILED, _message(data.decode("utf-8", "replace")))
            _read_usage(event.get("usage"), record)
            for choice in event.get("choices") or ():
                text, finish = _generated(choice)
                if text:
                    if heard is not None:
                        heard.append(text)
                    arrivals += 1
                    if last is None:
                        record.first = now
                    else:
                        record.gaps.append(now - last)
                    last = now
                if finish:
                    record.finish_reason = finish
                if text or finish:
                    record.end = now
        if record.finish_reason is None and not done:
            return self._ended(record, Outcome.FAILED, "the stream ended before a finish reason or [DONE]")
        if record.counted_by == "events":
            record.output_tokens = arrivals
        if record.end is None:
            record.end = self.clock()
        if record.first is None:
            # Tokens that have no text of their own (special tokens, say): the answer's end is their first sign.
            record.first = record.end
        record.outcome = Outcome.OK
        return None

    async def _events(self, response: httpx.Response) -> AsyncIterator[tuple[bytes, float]]:
        """The data of each server-sent event, and when the bytes that completed it arrived."""
        pending = b""
        data: list[bytes] = []
        async for chunk in response.aiter_raw():
            now = self.clock()
            pending += chunk
            if b"\n" not in chunk:
                continue
            *lines, pending = pending.split(b"\n")
            for line in lines:
                line = line.removesuffix(b"\r")
                if line.startswith(b"data:"):
                    data.append(line[5:].strip())
                elif not line and data:
                    yield b"\n".join(data), now
                    data = []
        if data:
            yield b"\n".join(data), self.clock()


def _generated(choice: dict[str, Any]) -> tuple[str, str | None]:
    """Generated text in a streamed choice (completion, or chat: content, reasoning, tool calls), and its finish."""
    finish = choice.get("finish_reason")
    if "delta" not in choice:
        return choice.get("text") or "", finish
    delta = choice["delta"] or {}
    text = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""
    if not text and delta.get("tool_calls"):
        text = json.dumps(delta["tool_calls"])
    return text, finish


def _read_usage(usage: Any, record: RequestRecord) -> None:
    if not isinstance(usage, dict):
        return
    if isinstance(usage.get("prompt_tokens"), int):
        record.prompt_tokens = usage["prompt_tokens"]
    if isinstance(usage.get("completion_tokens"), int):
        record.output_tokens = usage["completion_tokens"]
        record.counted_by = "usage"
    details = usage.get("prompt_tokens_details")
    if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
        record.cached_tokens = details["cached_tokens"]


def _message(text: str) -> str:
    """The message of an error body in OpenAI's shape, or the body."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return text or "empty answer"
