"""From what a client asks for to what the engine runs. The server and the Python interface share it.

Everything that can be wrong with a request is found here, before any work, with the figures that say what
would work.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from armillary.core.admission import check_request
from armillary.core.config import SchedulerConfig
from armillary.core.request import Request
from armillary.errors import ArmillaryError, Code
from armillary.models.calls.choose import ReplyFormat, reply_format
from armillary.models.chat import Message
from armillary.models.pooling import PoolingSpec
from armillary.models.tokenizer import Tokenizer
from armillary.runtime.grammar import Grammar
from armillary.runtime.grammar_tokens import tokens_of
from armillary.runtime.sampling import SamplingParams, check_vocabulary
from armillary.runtime.text import TextStream

if TYPE_CHECKING:
    from armillary.runtime.embed import Embedder

COMPLETION_TOKENS = 16
"""`max_tokens` of a plain completion that sets none, as OpenAI's API has it."""

UNSAID = ReplyFormat()
"""Stands for whatever the chat template says."""


def _fresh_seed() -> int:
    return secrets.randbelow(2**63)


class Place(TypedDict, total=False):
    """A request's place among the others, by the names that `Request` has for it."""

    priority: int
    deadline: float | None
    expires: float | None
    owner: str


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
        # What a grammar demands is demanded of every character, the first space included.
        continues = self.continues or params.grammar is not None
        return TextStream(tokenizer, params.stop, continues=continues, shown=shown, min_tokens=params.min_tokens)


@dataclass(frozen=True, slots=True)
class Preparer:
    """Makes requests for one model in one engine.

    Attributes:
        tokenizer: the model's.
        config: the limits of the engine's scheduler.
        vocab_size: rows of the model's embedding; every token id in a request must be below it.
        seeds: draws the seed of a request that brings none.
        replies: how the model takes tools and writes its answers; what the chat template says, if not given.
        pooling: what vectors the model gives, and whether it generates at all; None for one that only generates.
    """

    tokenizer: Tokenizer
    config: SchedulerConfig
    vocab_size: int
    seeds: Callable[[], int] = _fresh_seed
    replies: ReplyFormat = UNSAID
    pooling: PoolingSpec | None = None

    def __post_init__(self) -> None:
        if self.replies is UNSAID:
            object.__setattr__(self, "replies", reply_format(self.tokenizer.chat_template))

    def prompt(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        **place: Unpack[Place],
    ) -> Prepared:
        """A plain completion of a text or of token ids.

        The author of a prompt writes all that the model sees: control tokens spelled in the text become
        control tokens, and the begin-of-text token is added where the model expects one. Token ids are taken
        as they are. Unset `max_tokens` is 16, or less where less fits.

        Raises:
            ArmillaryError: INVALID_REQUEST, CONTEXT_LENGTH, CANNOT_FIT.
        """
        self._check_generates()
        ids = self.tokenizer.encode(prompt, parse_special=True) if isinstance(prompt, str) else list(prompt)
        self._check_ids(ids)
        room = min(COMPLETION_TOKENS, self._room(len(ids)))
        return self._prepared(ids, params, room, True, request_id, place)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        constrain: Callable[[Sequence[int]], Grammar | None] | None = None,
        request_id: str | None = None,
        **place: Unpack[Place],
    ) -> Prepared:
        """The next message of a conversation.

        Control tokens come from the chat template alone (see `Tokenizer.encode_chat`). Unset `max_tokens` is
        the rest of the context, or of the KV pool where that is smaller.

        Args:
            variables: further variables of the chat template, such as `enable_thinking`.
            constrain: makes the grammar of the answer, given the prompt.

        Raises:
            ArmillaryError: INVALID_REQUEST, CONTEXT_LENGTH, CANNOT_FIT.
        """
        self._check_generates()
        ids = self.conversation(messages, tools, variables)
        if constrain is not None and (grammar := constrain(ids)) is not None:
            params = replace(params, grammar=grammar)
        return self._prepared(ids, params, self._room(len(ids)), False, request_id, place)

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
        plain, offered = self.replies.conversation(messages, tools)
        return self.tokenizer.encode_chat(plain, offered, add_generation_prompt, **given)

    @property
    def embedder(self) -> Embedder:
        """Makes requests for vectors and scores.

        Raises:
            ArmillaryError: INVALID_REQUEST where the model gives none.
        """
        from armillary.runtime.embed import Embedder

        if self.pooling is None:
            raise ArmillaryError(Code.INVALID_REQUEST, "model must give vectors, given one that does not", "model")
        return Embedder(self.tokenizer, self.config, self.vocab_size, self.pooling)

    # ---------------------------------------------------------------- inside

    def _check_generates(self) -> None:
        if self.pooling is not None and self.pooling.kind != "decoder":
            does = (
                "scores pairs of texts (/v1/rerank)"
                if self.pooling.kind == "scorer"
                else "gives vectors (/v1/embeddings)"
            )
            raise ArmillaryError(
                Code.INVALID_REQUEST, f"model must be one that generates, given an encoder, which {does}", "model"
            )

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
        place: Place,
    ) -> Prepared:
        if not ids:
            raise ArmillaryError(
                Code.INVALID_REQUEST, "prompt must have at least one token, given an empty one", "prompt"
            )
        check_vocabulary(params, self.vocab_size)
        if params.grammar is not None and params.grammar.tokens is not tokens_of(self.tokenizer):
            raise ArmillaryError(
                Code.INVALID_REQUEST, "grammar must be compiled for this model, given one of another", "grammar"
            )
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
            # Prompt logprobs need every prompt position computed, so nothing may come from the cache.
            reuse_prefix=params.prompt_logprobs is None,
            sampling=params,
            **place,
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
