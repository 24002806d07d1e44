"""A request in two parts: one replica computes the prompt, another goes on, and a link carries what was computed.

Yinmin Zhong et al., "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model
Serving", 2024; Pratyush Patel et al., "Splitwise: Efficient Generative LLM Inference Using Phase Splitting", 2024.
"""

from __future__ import annotations

from dataclasses import replace

from armillary.core.request import Request
from armillary.deployment import LinkSettings


def first_part(request: Request) -> Request:
    """What the first replica does: the prompt and one token, with the blocks held for whoever goes on."""
    return replace(request, max_tokens=1, hold=True)


def rest_part(request: Request, token: int) -> Request:
    """What the second replica does, with the keys and values of the prompt and the first token."""
    return replace(
        request,
        prompt=(*request.prompt, token),
        max_tokens=request.max_tokens - 1,
        min_tokens=max(0, request.min_tokens - 1),
        handed=len(request.prompt),
    )


class Link:
    """What one replica sends goes out one piece after the other."""

    def __init__(self, settings: LinkSettings) -> None:
        self._settings = settings
        self._free = 0.0

    def send(self, size: int, now: float) -> float:
        """Send so many bytes; returns when all have arrived."""
        self._free = max(now, self._free) + size / self._settings.bandwidth
        return self._free + self._settings.latency_s
