"""The server under load, and what is sent to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from armillary.errors import ArmillaryError, Code
from armillary.measure.item import WorkItem

Endpoint = Literal["completions", "chat"]


@dataclass(frozen=True)
class Target:
    """The server under load.

    Attributes:
        url: of the server, with or without `/v1`.
        model: name sent with each request.
        endpoint: `completions` or `chat`.
        api_key: sent as a bearer token.
        timeout: seconds for a whole request.
        temperature: of sampling.
        ignore_eos: ask for exactly the wanted number of tokens (an extension that vLLM, SGLang, llama.cpp and
            Armillary know; a server that refuses unknown fields wants it off).
        vocab_size: send prompts as random token ids below this (completions only); None: as words.
        send_policy: send the workload's `priority` and `deadline` fields along (extensions).
        extra: merged into each request's body last.
        seed: of the prompts made up.
    """

    url: str
    model: str
    endpoint: Endpoint = "completions"
    api_key: str | None = None
    timeout: float = 600.0
    temperature: float = 0.0
    ignore_eos: bool = True
    vocab_size: int | None = None
    send_policy: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.vocab_size is not None and self.endpoint == "chat":
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                "endpoint must be completions where prompts are sent as token ids, given chat",
                param="vocab_size",
            )

    @property
    def base(self) -> str:
        """The address up to and including `/v1`."""
        return api_base(self.url)

    def body(self, item: WorkItem, prompt: str | list[int], said: Sequence[str] = ()) -> dict[str, Any]:
        """The JSON body for `item`.

        Args:
            said: what the prompt repeats of its conversation, texts of user and model in turns; the prompt follows.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": item.output_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            body["ignore_eos"] = True
        if isinstance(prompt, list):
            body["prompt"] = prompt
        elif self.endpoint == "chat":
            # A history of which something was left out is one text, and belongs to the user's.
            texts = [*said, prompt] if len(said) % 2 == 0 else [" ".join([*said, prompt])]
            body["messages"] = [
                {"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(texts)
            ]
        else:
            body["prompt"] = " ".join([*said, prompt])
        if self.send_policy:
            body["priority"] = item.priority
            if item.deadline is not None:
                body["deadline_s"] = item.deadline
        return body | self.extra


def api_base(url: str) -> str:
    """`url` with exactly one `/v1` at its end."""
    trimmed = url.rstrip("/")
    if not trimmed.startswith(("http://", "https://")):
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"url must begin with http:// or https://, given {url!r}", param="url"
        )
    return trimmed if trimmed.endswith("/v1") else f"{trimmed}/v1"
