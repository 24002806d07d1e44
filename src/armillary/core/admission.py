"""What is refused at the door: requests that are malformed, too long, could never fit, or are one too many."""

from __future__ import annotations

from array import array
from math import inf, isfinite

from armillary.core.config import SchedulerConfig
from armillary.core.load import Share
from armillary.core.request import Request
from armillary.errors import ArmillaryError, Code, Refused


def check_request(request: Request, config: SchedulerConfig, now: float = -inf) -> None:
    """Refuse a request that a scheduler with this configuration could not finish.

    Args:
        now: the engine's time, for a request that must end by one.

    Raises:
        ArmillaryError: INVALID_REQUEST, CONTEXT_LENGTH, CANNOT_FIT or DEADLINE, with both figures.
    """
    prompt, limit = len(request.prompt), len(request.prompt) + request.max_tokens
    if prompt < 1 or request.max_tokens < 0 or request.n < 1:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            "a request must have at least one prompt token, max_tokens of at least 0 and n of at least 1, given "
            f"{prompt} prompt tokens, max_tokens {request.max_tokens} and n {request.n}",
        )
    if request.max_tokens == 0 and request.n != 1:
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"n must be 1 where max_tokens is 0, given {request.n}: nothing differs", "n"
        )
    if not 0 <= request.handed <= prompt or (request.n != 1 and (request.handed or request.hold)):
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"a request that is handed over must have n of 1 and at most its prompt ({prompt} tokens) handed, given "
            f"n {request.n} and {request.handed} tokens",
        )
    for name, moment in (("deadline", request.deadline), ("expires", request.expires)):
        if moment is not None and not isfinite(moment):
            raise ArmillaryError(Code.INVALID_REQUEST, f"{name} must be finite, given {moment}", name)
    if request.n > config.max_running:
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"n must be at most max_running = {config.max_running}, given {request.n}", "n"
        )
    if limit > config.max_context:
        raise ArmillaryError(
            Code.CONTEXT_LENGTH,
            f"This model's maximum context length is {config.max_context} tokens. However, the request has "
            f"{prompt} prompt tokens"
            + (f" and asks for {request.max_tokens} more ({limit} in all)." if request.max_tokens else "."),
            "max_tokens" if prompt < config.max_context else "prompt",
        )
    try:
        if not request.digests:  # else every token has been looked at
            array("I", request.prompt)
    except (TypeError, OverflowError) as error:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"prompt tokens must be whole numbers from 0 to 2**32 - 1, given others: {error}",
            "prompt",
        ) from None
    # The last token generated is never fed back, so it needs no place in the cache.
    held = limit - 1 if request.max_tokens else limit
    needed = config.blocks_for(held)
    if needed > config.num_blocks:
        raise ArmillaryError(
            Code.CANNOT_FIT,
            f"the request can never fit: {prompt} prompt tokens and {request.max_tokens} more need {needed} KV "
            f"blocks, and the pool has {config.num_blocks}, so prompt and max_tokens together must be at most "
            f"{config.num_blocks * config.block_size + limit - held}",
            "max_tokens",
        )
    if request.expires is not None and request.expires <= now:
        raise ArmillaryError(
            Code.DEADLINE, f"the request's time was over {now - request.expires:.3f} seconds before it could be queued"
        )


def check_room(tokens: int, config: SchedulerConfig, waiting: Share) -> None:
    """Refuse a request for which the queue has no room.

    Args:
        tokens: of its prompt.
        waiting: what waits already, preempted sequences included.

    Raises:
        Refused: QUEUE_FULL, with both figures.
    """
    if waiting.requests >= config.max_waiting:
        raise Refused(
            Code.QUEUE_FULL,
            "queue_requests",
            f"{waiting.requests} requests are waiting and at most {config.max_waiting} may",
        )
    limit = config.max_waiting_tokens
    if limit is not None and waiting.requests and waiting.tokens + tokens > limit:
        raise Refused(
            Code.QUEUE_FULL,
            "queue_tokens",
            f"{waiting.tokens} tokens are waiting and this request has {tokens}; at most {limit} may",
        )
