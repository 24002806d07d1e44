"""`POST /tokenize` and `POST /detokenize`: what a text is to the model, in the forms that vLLM gives it."""

from __future__ import annotations

from fastapi import FastAPI, Request
from pydantic import Field, model_validator
from pydantic_core import to_json
from starlette.responses import Response
from typing_extensions import TypedDict

from armillary.errors import ArmillaryError, Code
from armillary.server.chat import MAX_MESSAGES, Message
from armillary.server.endpoint import compute
from armillary.server.fields import AnyBody, Token
from armillary.server.logprobs import token_text
from armillary.server.openapi import described
from armillary.server.served import Served
from armillary.server.service import Service
from armillary.server.tools import MAX_TOOLS, Tool, offer

MAX_TEXT = 2**20
"""Characters of one prompt: about a second of one core. More than a context holds may be counted; a library not."""
MAX_IDS = 2**20


class TokenizeBody(AnyBody):
    """A text, or a conversation as the model's chat template writes it."""

    prompt: str | None = Field(None, max_length=MAX_TEXT, description="A text. Control tokens may be spelt in it.")
    messages: list[Message] | None = Field(
        None, min_length=1, max_length=MAX_MESSAGES, description="A conversation, instead of a prompt."
    )
    tools: list[Tool] | None = Field(
        None, min_length=1, max_length=MAX_TOOLS, description="Shown to the model by the chat template."
    )
    add_special_tokens: bool | None = Field(
        None, description="Whether a prompt gets the begin-of-text token. Unset: true. A conversation never does."
    )
    add_generation_prompt: bool | None = Field(
        None, description="Whether a conversation ends with the beginning of an answer. Unset: true."
    )
    return_token_strs: bool | None = Field(None, description="Answer with the text of each token too.")
    chat_template_kwargs: dict[str, str | int | float | bool | None] | None = Field(
        None, max_length=32, description="More variables for the chat template."
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt must be given, or messages, given both or neither")
        of_chat = self.model_fields_set & {"tools", "add_generation_prompt", "chat_template_kwargs"}
        if self.messages is None and of_chat:
            raise ValueError(f"{sorted(of_chat)[0]} must come with messages, given a prompt")
        if self.messages is not None and self.add_special_tokens:
            raise ValueError("add_special_tokens must not be true with messages: the chat template writes them")
        return self


class TokenizeAnswer(TypedDict):
    """The tokens of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeBody(AnyBody):
    """Token ids."""

    tokens: list[Token] = Field(max_length=MAX_IDS, description="Token ids.")


class DetokenizeAnswer(TypedDict):
    """The text of tokens."""

    prompt: str


def add_tokens(app: FastAPI, service: Service) -> None:
    """Add both endpoints."""

    @app.post("/tokenize")
    @described(body=TokenizeBody, answer=TokenizeAnswer)
    async def tokenize(request: Request) -> Response:
        """The token ids of a text, or of a conversation as the model sees it."""
        return _response(await compute(request, service, TokenizeBody, _tokenize))

    @app.post("/detokenize")
    @described(body=DetokenizeBody, answer=DetokenizeAnswer)
    async def detokenize(request: Request) -> Response:
        """The text of token ids."""
        return _response(await compute(request, service, DetokenizeBody, _detokenize))


def _response(answer: bytes) -> Response:
    return Response(answer, media_type="application/json")


def _tokenize(body: TokenizeBody, served: Served) -> bytes:
    """A `TokenizeAnswer`, written where it is made: it may be long."""
    tokenizer = served.tokenizer
    if body.prompt is not None:
        tokens = tokenizer.encode(body.prompt, body.add_special_tokens is not False, parse_special=True)
    else:
        offered = offer(body.tools, None, None)
        tokens = served.preparer.conversation(
            [message.model_dump(exclude_unset=True) for message in body.messages or ()],
            None if offered is None else offered.for_template(),
            body.chat_template_kwargs,
            body.add_generation_prompt is not False,
        )
    texts = [token_text(tokenizer.token_bytes(token)) for token in tokens] if body.return_token_strs else None
    answer: TokenizeAnswer = {
        "count": len(tokens),
        "max_model_len": served.limits.max_context,
        "tokens": tokens,
        "token_strs": texts,
    }
    return to_json(answer)


def _detokenize(body: DetokenizeBody, served: Served) -> bytes:
    """A `DetokenizeAnswer`, likewise."""
    size = served.preparer.vocab_size
    for place, token in enumerate(body.tokens):
        if token >= size:
            raise ArmillaryError(
                Code.INVALID_REQUEST, f"tokens must hold ids below {size}, given {token} at place {place}", "tokens"
            )
    answer: DetokenizeAnswer = {"prompt": served.tokenizer.decode(body.tokens, skip_special=False)}
    return to_json(answer)
