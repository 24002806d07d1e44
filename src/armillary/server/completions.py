"""`POST /v1/completions`: the older form, text or tokens in, text out."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from pydantic import Field, field_validator, model_validator

from armillary.runtime.grammar import compile_grammar
from armillary.server.fields import MAX_INT, GenerationFields, Token
from armillary.server.generation import Delta, Generation, Part
from armillary.server.intake import check_count, check_length, check_tokens, new_id, order_of, sampling
from armillary.server.logprobs import TokenEntry, legacy_form, token_entry
from armillary.server.served import Served
from armillary.server.sse import UNNAMED

MAX_PROMPTS = 256


class CompletionBody(GenerationFields):
    """The body of a request."""

    prompt: str | list[str] | list[Token] | list[list[Token]] = Field(
        description="A text, token ids, or a list of either; every prompt gets n choices."
    )
    max_tokens: int | None = Field(
        None, ge=0, le=MAX_INT, description="Unset: 16. 0 needs echo: the prompt comes back, with its logprobs."
    )
    echo: bool | None = Field(None, description="Begin each text with the prompt.")
    logprobs: int | None = Field(None, ge=0, le=20, description="How many of the likeliest tokens to list.")
    best_of: int | None = Field(None, ge=1, description="Nothing is ranked, so only the value of n is accepted.")
    suffix: None = Field(None, description="Text before a suffix is not made; only null is accepted.")

    @field_validator("prompt")
    @classmethod
    def _some_prompts(cls, value: Any) -> Any:
        if isinstance(value, list):
            if not value:
                raise ValueError("must hold a prompt, given an empty list")
            if not isinstance(value[0], int) and len(value) > MAX_PROMPTS:
                raise ValueError(f"must hold at most {MAX_PROMPTS} prompts, given {len(value)}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> CompletionBody:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens must be at least 1 without echo, given 0")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError(f"best_of must equal n, given {self.best_of} and {self.n or 1}: nothing is ranked")
        return self

    def prompts(self) -> list[str | list[int]]:
        """The prompts, whichever of the four forms they came in."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        prompts: list[str | list[int]] = []
        numbers: list[int] = []
        for item in self.prompt:
            if isinstance(item, int):
                numbers.append(item)
            else:
                prompts.append(item)
        return [numbers] if numbers else prompts


def completion_parts(body: CompletionBody, served: Served) -> list[Part]:
    """One part per prompt. Pure computation; long for long prompts.

    Raises:
        ArmillaryError: the prompt or an option is refused.
    """
    prompts = body.prompts()
    check_count(len(prompts), served, "prompt")
    silent = body.max_tokens == 0
    params = sampling(
        body,
        served,
        max_tokens=1 if silent else body.max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )
    if (wanted := body.wanted) is not None:
        grammar = compile_grammar(wanted.kind, wanted.source, served.tokenizer, param=wanted.param)
        params = replace(params, grammar=grammar)
    order = order_of(body, served)
    response_id = new_id("cmpl-")
    parts = []
    for place, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            check_length(len(prompt), served, "prompt")
        lead = ""
        if body.echo:
            lead = prompt if isinstance(prompt, str) else served.tokenizer.decode(prompt, skip_special=False)
        request_id = response_id if len(prompts) == 1 else f"{response_id}-{place}"
        prepared = served.preparer.prompt(prompt, params, request_id=request_id, **order)
        parts.append(Part(prepared, response_id, body.logprobs is not None, silent, lead))
    check_tokens([len(part.request.prompt) for part in parts], served, "prompt")
    return parts


class CompletionShape:
    """Turns deltas into the bodies of one response."""

    framing = UNNAMED

    def __init__(self, body: CompletionBody, served: Served, generation: Generation) -> None:
        self._body = body
        self._served = served
        self._generation = generation
        self._offsets = [0] * generation.count
        self._echoed = [not body.echo] * generation.count
        self._head = {
            "id": generation.response_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": served.fingerprint,
        }

    async def stream(self) -> AsyncGenerator[list[Any], None]:
        """Chunks, as lists that go out together."""
        usage = {"usage": None} if self._body.usage_in_stream else {}
        async with aclosing(self._generation.deltas()) as news:
            async for deltas in news:
                yield [{**self._head, "choices": [self._choice(delta)], **usage} for delta in deltas]
        if self._body.usage_in_stream:
            yield [{**self._head, "choices": [], "usage": self._generation.usage.body()}]

    async def whole(self) -> dict[str, Any]:
        """The one body of a response that is not streamed."""
        choices = [self._choice(delta) for delta in await self._generation.whole()]
        return {**self._head, "choices": choices, "usage": self._generation.usage.body()}

    def _choice(self, delta: Delta) -> dict[str, Any]:
        logprobs = None
        if self._body.logprobs is not None:
            entries = delta.entries
            if not self._echoed[delta.index]:
                self._echoed[delta.index] = True
                entries = self._prompt_entries(delta.index) + entries
            logprobs, offset = legacy_form(entries, self._body.logprobs, self._offsets[delta.index])
            self._offsets[delta.index] = offset
        return {"index": delta.index, "text": delta.text, "logprobs": logprobs, "finish_reason": delta.finish}

    def _prompt_entries(self, choice: int) -> list[TokenEntry]:
        part, details = self._generation.prompt_of(choice)
        token_bytes = self._served.tokenizer.token_bytes
        pairs = zip(part.request.prompt, details, strict=True)
        return [token_entry(token, detail, token_bytes) for token, detail in pairs]
