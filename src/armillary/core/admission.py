"""What is refused at the door: requests that are malformed, too long, could never fit, or are one too many."""

from __future__ import annotations

from array import array
from math import isfinite

from armillary.core.config import SchedulerConfig
from armillary.core.request import Request
from armillary.errors import ArmillaryError, Code


def check_request(request: Request, config: SchedulerConfig, waiting: int) -> None:
    """Refuse a request that a scheduler with this configuration could not finish.

    Args:
        waiting: requests in the queue already.

    Raises:
        ArmillaryError: INVALID_REQUEST, CONTEXT_LENGTH, CANNOT_FIT or QUEUE_FULL, with both figures.
    """
    prompt, limit = len(request.prompt), len(request.prompt) + request.max_tokens
    if prompt < 1 or request.max_tokens < 1 or request.n < 1:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            "a request must have at least one prompt token, max_tokens and n of at least 1, given "
            f"{prompt} prompt tokens, max_tokens {request.max_tokens} and n {request.n}",
        )
    if request.deadline is not None and not isfinite(request.deadline):
        raise ArmillaryError(Code.INVALID_REQUEST, f"deadline must be finite, given {request.deadline}", "deadline")
    if request.n > config.max_running:
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"n must be at most max_running = {config.max_running}, given {request.n}", "n"
        )
    if limit > config.max_context:
        raise ArmillaryError(
            Code.CONTEXT_LENGTH,
            f"This model's maximum context length is {config.max_context} tokens. However, the request has "
            f"{prompt} prompt tokens and asks for {request.max_tokens} more ({limit} in all).",
            "max_tokens" if prompt < config.max_context else "prompt",
        )
    try:
        array("I", request.prompt)
    except (TypeError, OverflowError) as error:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"prompt tokens must be whole numbers from 0 to 2**32 - 1, given others: {error}",
            "prompt",
        ) from None
    # The last token generated is never fed back, so it needs no place in the cache.
    needed = config.blocks_for(limit - 1)
    if needed > config.num_blocks:
        raise ArmillaryError(
            Code.CANNOT_FIT,
            f"the request can never fit: {prompt} prompt tokens and {request.max_tokens} more need {needed} KV "
            f"blocks, and the pool has {config.num_blocks}, so prompt and max_tokens together must be at most "
            f"{config.num_blocks * config.block_size + 1}",
            "max_tokens",
        )
    if waiting >= config.max_waiting:
        raise ArmillaryError(Code.QUEUE_FULL, f"{waiting} requests are waiting and at most {config.max_waiting} may")
