"""Logprobs as clients read them: the chat form and the older form of completions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

MINUS_INFINITY = -9999.0
"""JSON has no infinity; OpenAI writes this."""

TokenBytes = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """One token of a text with what is known about it.

    Attributes:
        data: the bytes that the token stands for.
        logprob: None for the first token of a prompt, which nothing precedes.
        top: the likeliest tokens at this place, likeliest first.
    """

    data: bytes
    logprob: float | None
    top: tuple[tuple[bytes, float], ...]


def token_entry(token: int, detail: Any, token_bytes: TokenBytes) -> TokenEntry:
    """Make an entry from the executor's `TokenLogprobs`, or from None where there is no distribution."""
    data = token_bytes(token)
    if detail is None:
        return TokenEntry(data, None, ())
    top = tuple((token_bytes(other), _finite(logprob)) for other, logprob in detail.top)
    return TokenEntry(data, _finite(detail.logprob), top)


def token_text(data: bytes) -> str:
    """A token as a string. Part of a character is spelt out, so that different tokens stay different."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def characters(data: bytes) -> int:
    """How many characters begin within these bytes."""
    return sum(1 for byte in data if byte & 0xC0 != 0x80)


def chat_form(entries: Iterable[TokenEntry], top: int) -> dict[str, Any]:
    """`logprobs` of a chat choice.

    Args:
        top: `top_logprobs` of the request.
    """
    return {
        "content": [
            {
                **_chat_token(entry.data, MINUS_INFINITY if entry.logprob is None else entry.logprob),
                "top_logprobs": [_chat_token(data, logprob) for data, logprob in entry.top[:top]],
            }
            for entry in entries
        ],
        "refusal": None,
    }


def _chat_token(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token_text(data), "logprob": logprob, "bytes": list(data)}


def legacy_form(entries: Iterable[TokenEntry], top: int, offset: int) -> tuple[dict[str, Any], int]:
    """`logprobs` of a completion, and the offset at which the next entry's text begins.

    Args:
        top: `logprobs` of the request. The chosen token is listed beside the likeliest, as OpenAI does.
        offset: characters of the choice's text before the first entry.
    """
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    offsets: list[int] = []
    for entry in entries:
        text = token_text(entry.data)
        tokens.append(text)
        token_logprobs.append(entry.logprob)
        if entry.logprob is None:
            top_logprobs.append(None)
        else:
            likeliest = {token_text(data): logprob for data, logprob in entry.top[:top]}
            likeliest.setdefault(text, entry.logprob)
            top_logprobs.append(likeliest)
        offsets.append(offset)
        offset += characters(entry.data)
    form = {
        "tokens": tokens,
        "token_logprobs": token_logprobs,
        "top_logprobs": top_logprobs,
        "text_offset": offsets,
    }
    return form, offset


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else MINUS_INFINITY
