"""From a checked body to sampling parameters and a place in the order; what is too long by far goes no further."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from armillary.errors import ArmillaryError, Code
from armillary.runtime.prepare import Place
from armillary.runtime.sampling import SamplingParams
from armillary.server.admission import caller
from armillary.server.exchange import current
from armillary.server.fields import GenerationFields
from armillary.server.served import Served
from armillary.server.timelimit import Wishes, times_of

SAMPLING_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "seed", "min_tokens", "ignore_eos",
)  # fmt: skip
"""Fields that a body and `SamplingParams` share by name."""
RECOMMENDED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Fields that a model's makers may recommend values for, in generation_config.json."""
ALWAYS_TOKENISED = 65536
"""Characters up to which a text is tokenised before its length is judged."""


def new_id(prefix: str) -> str:
    """An id that nothing else has, such as `cmpl-3f2a…`."""
    return prefix + os.urandom(12).hex()


def sampling(
    body: GenerationFields,
    served: Served,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """How to sample: what the client set, then what the model's makers recommend, then our defaults.

    Raises:
        ArmillaryError: INVALID_REQUEST, naming the field.
    """
    values = {name: value for name in RECOMMENDED if (value := served.defaults.get(name)) is not None}
    values |= {name: value for name in SAMPLING_FIELDS if (value := getattr(body, name)) is not None}
    values.setdefault("seed", served.seeds())
    return SamplingParams(
        **values,
        n=body.n or 1,
        max_tokens=max_tokens,
        stop=tuple(body.stop),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        logit_bias=body.bias,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


class Ordered(Wishes, Protocol):
    """What a body may say about its place in the queue."""

    @property
    def priority(self) -> int | None: ...


def order_of(body: Ordered, served: Served) -> Place:
    """The place in the queue that a client asks for, and may have; moments in the seconds of the engine's clock.

    Raises:
        ArmillaryError: INVALID_REQUEST.
    """
    times = times_of(body, current.get(), served.clock())
    who = caller()
    return {
        "priority": who.priority(body.priority),
        "deadline": times.deadline,
        "expires": times.expires,
        "owner": who.name,
    }


def check_count(prompts: int, served: Served, param: str) -> None:
    """Refuse more prompts at once than may ever wait: no moment would be the right one to come again.

    Raises:
        ArmillaryError: INVALID_REQUEST, with the limit.
    """
    most, why = served.limits.max_waiting, "requests that may wait (max_waiting)"
    of_key = caller().limits.max_waiting
    if of_key is not None and of_key < most:
        most, why = of_key, "requests of one key that may wait (max_waiting of the key)"
    if prompts > most:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"{param} must hold at most as many prompts as there are {why}, {most}, given {prompts}; send them as "
            "several requests",
            param,
        )


def check_tokens(prompts: Sequence[int], served: Served, param: str) -> None:
    """Refuse prompts that together are more tokens than may ever wait. One prompt alone may always.

    Args:
        prompts: their lengths.

    Raises:
        ArmillaryError: INVALID_REQUEST, with the limit.
    """
    most, given = served.limits.max_waiting_tokens, sum(prompts)
    if most is not None and len(prompts) > 1 and given > most:
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"{param} must hold at most as many tokens in several prompts as may wait (max_waiting_tokens), {most}, "
            f"given {given}; send them as several requests",
            param,
        )


def check_length(characters: int, served: Served, param: str) -> None:
    """Refuse a text that no tokenizer could make fit, without spending seconds on finding its exact length.

    Raises:
        ArmillaryError: CONTEXT_LENGTH.
    """
    context = served.limits.max_context
    if characters > ALWAYS_TOKENISED and characters > context * served.longest_token:
        raise ArmillaryError(
            Code.CONTEXT_LENGTH,
            f"This model's maximum context length is {context} tokens. However, the request has {characters} "
            f"characters, which are at least {characters // served.longest_token} tokens.",
            param,
        )
