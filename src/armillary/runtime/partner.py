"""Someone to talk to: a model in this process, or one behind an OpenAI-compatible server. Same words either way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from armillary.deployment.engine import EngineSettings
from armillary.errors import ArmillaryError, Code
from armillary.runtime.llm import LLM
from armillary.runtime.sampling import SamplingParams
from armillary.runtime.spelling import Spelling

Message = Mapping[str, Any]

_CODES = {401: Code.UNAUTHORIZED, 404: Code.NOT_FOUND, 413: Code.TOO_LARGE, 429: Code.QUEUE_FULL, 503: Code.UNAVAILABLE}


@dataclass(frozen=True)
class Wishes:
    """How to answer; None leaves a field to the model or the server.

    Attributes:
        temperature: 0 is greedy.
        top_p: share of the probability that may be drawn from.
        max_tokens: most tokens in an answer.
        seed: the same seed and words give the same answer.
        stop: strings that end an answer.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def given(self) -> dict[str, Any]:
        """The fields that are set."""
        fields = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens,
                  "seed": self.seed, "stop": self.stop or None}  # fmt: skip
        return {name: value for name, value in fields.items() if value is not None}


class Partner(Protocol):
    """Answers conversations and continues texts."""

    name: str

    def reply(
        self, messages: Sequence[Message], wishes: Wishes, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> AsyncIterator[str]:
        """The next message, piece by piece, with reasoning and calls spelled out. Raises ArmillaryError where there
        is none."""
        ...

    def complete(self, prompt: str, wishes: Wishes) -> AsyncIterator[str]:
        """What follows `prompt`, piece by piece. Raises ArmillaryError where nothing can."""
        ...

    def close(self) -> None:
        """Let go of the model or the connection."""
        ...


class LocalPartner:
    """A model in this process."""

    def __init__(self, model: str, engine: EngineSettings) -> None:
        self.name = model
        self.llm = LLM(model, **engine.model_dump(exclude_unset=True))

    async def reply(
        self, messages: Sequence[Message], wishes: Wishes, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> AsyncIterator[str]:
        offered = [dict(tool) for tool in tools] if tools else None
        talk = [dict(message) for message in messages]
        async with aclosing(self.llm.stream(talk, SamplingParams(**wishes.given()), tools=offered)) as pieces:
            async for piece in pieces:
                yield piece.text

    async def complete(self, prompt: str, wishes: Wishes) -> AsyncIterator[str]:
        async with aclosing(self.llm.stream(prompt, SamplingParams(**wishes.given()))) as pieces:
            async for piece in pieces:
                yield piece.text

    def close(self) -> None:
        self.llm.close()


class RemotePartner:
    """A model behind a server, `url` with or without `/v1`.

    Raises:
        ArmillaryError: UNREACHABLE where nothing answers there.
    """

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None, timeout: float = 600.0) -> None:
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = httpx.Timeout(timeout, connect=5.0)
        self.name = model or self._first_model()

    async def reply(
        self, messages: Sequence[Message], wishes: Wishes, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> AsyncIterator[str]:
        body: dict[str, Any] = {"messages": [dict(message) for message in messages]}
        if tools:
            body["tools"] = [dict(tool) for tool in tools]
        spelling = Spelling()
        async for choice in self._choices("chat/completions", body, wishes):
            yield spelling.take(choice.get("delta") or {})
        yield spelling.end()

    async def complete(self, prompt: str, wishes: Wishes) -> AsyncIterator[str]:
        async for choice in self._choices("completions", {"prompt": prompt}, wishes):
            yield choice.get("text") or ""

    def close(self) -> None:
        """Nothing is kept open between answers."""

    def _first_model(self) -> str:
        try:
            response = httpx.get(f"{self.url}/models", headers=self._headers, timeout=10.0)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code != 200:
            raise _refusal(response.status_code, response.text)
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise self._unreachable(error) from error

    async def _choices(self, path: str, body: dict[str, Any], wishes: Wishes) -> AsyncIterator[dict[str, Any]]:
        """The streamed choices of one request."""
        content = {"model": self.name, "stream": True, **wishes.given(), **body}
        try:
            async with (
                httpx.AsyncClient(headers=self._headers, timeout=self._timeout) as client,
                client.stream("POST", f"{self.url}/{path}", json=content) as response,
            ):
                if response.status_code != 200:
                    raise _refusal(response.status_code, (await response.aread()).decode("utf-8", "replace"))
                async for line in response.aiter_lines():
                    if not line.startswith("data:") or line[5:].strip() == "[DONE]":
                        continue
                    event = json.loads(line[5:])
                    if "error" in event:
                        raise _refusal(500, line[5:])
                    for choice in event.get("choices") or ():
                        yield choice
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ArmillaryError:
        why = str(error) or type(error).__name__
        return ArmillaryError(
            Code.UNREACHABLE,
            f"an OpenAI-compatible server must answer at {self.url}, given {why}; start one with `armillary serve`",
            "url",
        )


async def answers(
    partner: Partner,
    questions: Sequence[tuple[Sequence[Message], Sequence[Mapping[str, Any]]]],
    wishes: Wishes,
    together: int = 16,
    done: Callable[[], None] = lambda: None,
) -> list[str]:
    """The answers to many conversations (messages, tools), in their order, `together` at a time."""
    slots = asyncio.Semaphore(together)

    async def one(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
        async with slots:
            text = "".join([piece async for piece in partner.reply(messages, wishes, tools or None)])
        done()
        return text

    return list(await asyncio.gather(*(one(messages, tools) for messages, tools in questions)))


def _refusal(status: int, text: str) -> ArmillaryError:
    """The error that a server answered with, in its own words."""
    try:
        message = str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        message = text.strip()[:300] or f"status {status}"
    other = Code.INVALID_REQUEST if status < 500 else Code.ENGINE_FAILED
    code = _CODES.get(status, other)
    return ArmillaryError(code, f"the server answered {status}: {message}")
