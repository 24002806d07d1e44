"""From what a client asks for to what the engine runs. The server and the Python interface share it.

Everything that can be wrong with a request is found here, before any work, with the figures that say what
would work.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from armillary.core.admission import check_request
from armillary.core.config import SchedulerConfig
from armillary.core.request import Request
from armillary.errors import ArmillaryError, Code
from armillary.models.chat import Message
from armillary.models.tokenizer import Tokenizer
from armillary.runtime.sampling import SamplingParams, check_vocabulary
from armillary.runtime.text import TextStream

COMPLETION_TOKENS = 16
"""`max_tokens` of a plain completion that sets none, as OpenAI's API has it."""


def _fresh_seed() -> int:
    return secrets.randbelow(2**63)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready for the engine, and what its text needs.

    Attributes:
        continues: the text goes on from the prompt, so a leading space belongs to it.
    """

    request: Request
    params: SamplingParams
    continues: bool

    def text_stream(self, tokenizer: Tokenizer, shown: frozenset[int] = frozenset()) -> TextStream:
        """The text of one of the choices, from its beginning, with the control tokens of `shown` spelt out."""
        params = self.params
        return TextStream(
            tokenizer, params.stop, continues=self.continues, shown=shown, min_tokens=params.min_tokens
        )


@dataclass(frozen=True, slots=True)
class Preparer:
    """Makes requests for one model in one engine.

    Attributes:
        tokenizer: the model's.
        config: the limits of the engine's scheduler.
        vocab_size: rows of the model's embedding; every token id in a request must be below it.
        seeds: draws the seed of a request that brings none.
    """

    tokenizer: Tokenizer
    config: SchedulerConfig
    vocab_size: int
    seeds: Callable[[], int] = _fresh_seed

    def prompt(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
    ) -> Prepared:
        """A plain completion of a text or of token ids.

        The author of a prompt writes all that the model sees: control tokens spelled in the text become
        control tokens, and the begin-of-text token is added where the model expects one. Token ids are taken
        as they are. Unset `max_tokens` is 16, or less where less fits.

        Raises:
            ArmillaryError: INVALID_REQUEST, CONTEXT_LENGTH, CANNOT_FIT.
        """
        ids = self.tokenizer.encode(prompt, parse_special=True) if isinstance(prompt, str) else list(prompt)
        self._check_ids(ids)
        room = min(COMPLETION_TOKENS, self._room(len(ids)))
        return self._prepared(ids, params, room, True, request_id, priority, deadline)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
    ) -> Prepared:
        """The next message of a conversation.

        Control tokens come from the chat template alone (see `Tokenizer.encode_chat`). Unset `max_tokens` is
        the rest of the context, or of the KV pool where that is smaller.

        Args:
            variables: further variables of the chat template, such as `enable_thinking`.

        Raises:
            ArmillaryError: INVALID_REQUEST, CONTEXT_LENGTH, CANNOT_FIT.
        """
        ids = self.conversation(messages, tools, variables)
        return self._prepared(ids, params, self._room(len(ids)), False, request_id, priority, deadline)

    def conversation(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation of any length. Arguments as of `chat`.

        Raises:
            ArmillaryError: INVALID_REQUEST.
        """
        given = dict(variables or {})
        for name in ("messages", "tools", "add_generation_prompt", "guard"):
            if name in given:
                raise ArmillaryError(
                    Code.INVALID_REQUEST,
                    f"variables of the chat template must not be named {name!r}: that one is set from the request",
                    "chat_template_kwargs",
                )
        return self.tokenizer.encode_chat(messages, tools, add_generation_prompt, **given)

    # ---------------------------------------------------------------- inside

    def _room(self, prompt: int) -> int:
        """Tokens that can be generated after so many: at least 1, so that admission names what is too long."""
        held = self.config.num_blocks * self.config.block_size + 1  # the last token needs no place in the pool
        return max(1, min(self.config.max_context, held) - prompt)

    def _prepared(
        self,
        ids: list[int],
        params: SamplingParams,
        room: int,
        continues: bool,
        request_id: str | None,
        priority: int,
        deadline: float | None,
    ) -> Prepared:
        if not ids:
            raise ArmillaryError(
                Code.INVALID_REQUEST, "prompt must have at least one token, given an empty one", "prompt"
            )
        check_vocabulary(params, self.vocab_size)
        max_tokens = room if params.max_tokens is None else params.max_tokens
        if params.min_tokens > max_tokens:
            raise ArmillaryError(
                Code.INVALID_REQUEST,
                f"min_tokens must be at most max_tokens, given {params.min_tokens} and {max_tokens}",
                "min_tokens",
            )
        if params.seed is None:
            params = replace(params, seed=self.seeds())
        request = Request(
            id=request_id if request_id is not None else f"req-{secrets.token_hex(12)}",
            prompt=tuple(ids),
            max_tokens=max_tokens,
            n=params.n,
            min_tokens=params.min_tokens,
            stop_ids=self._stop_ids(params),
            priority=priority,
            deadline=deadline,
            # Prompt logprobs need every prompt position computed, so nothing may come from the cache.
            reuse_prefix=params.prompt_logprobs is None,
            sampling=params,
        )
        check_request(request, self.config)
        return Prepared(request, params, continues)

    def _stop_ids(self, params: SamplingParams) -> frozenset[int]:
        """Tokens that end a sequence: the model's own, the request's, and control tokens given as stop strings."""
        ids = set(params.stop_token_ids)
        if not params.ignore_eos:
            ids |= self.tokenizer.eos_ids
        # Control tokens have no text in which a stop string could be found.
        ids |= {i for text in params.stop if (i := self.tokenizer.special_id(text)) is not None}
        return frozenset(ids)

    def _check_ids(self, ids: list[int]) -> None:
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < self.vocab_size:
                raise ArmillaryError(
                    Code.INVALID_REQUEST,
                    f"prompt must hold token ids from 0 to {self.vocab_size - 1}, given {token!r:.40}",
                    "prompt",
                )
