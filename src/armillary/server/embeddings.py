"""`POST /v1/embeddings`: vectors of texts or token ids, from a decoder or an encoder."""

from __future__ import annotations

import base64
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from pydantic import Field, field_validator
from starlette.responses import Response
from typing_extensions import TypedDict

from armillary.runtime.pooling import Vector
from armillary.server.fields import MAX_INT, Token
from armillary.server.intake import check_length, new_id, order_of
from armillary.server.openapi import described
from armillary.server.pooled import Batch, PooledBody, pool
from armillary.server.served import Served
from armillary.server.service import Service

MAX_INPUTS = 2048
"""Inputs of one request, as OpenAI's API has it."""

Text = Annotated[str, Field(min_length=1)]


class EmbeddingBody(PooledBody):
    """The body of a request."""

    input: Text | list[Text] | list[Token] | list[list[Token]] = Field(
        description=f"A text, token ids, or a list of up to {MAX_INPUTS} of either. A text's control tokens are text."
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: little-endian float32, the same numbers exactly. Unset: float."
    )
    dimensions: int | None = Field(
        None,
        ge=1,
        le=MAX_INT,
        description="Keep so many leading numbers, and scale to length 1 again. At most the model's size; where its "
        "config.json lists `matryoshka_dimensions`, one of those.",
    )
    pooling: Literal["mean", "last", "cls"] | None = Field(
        None,
        description="Extension. Mean of all tokens, last token, or (encoders) first. Unset: as the model's folder "
        "says, else mean.",
    )
    normalize: bool | None = Field(
        None, description="Extension. Whether vectors have length 1. Unset: as the model's folder says, else true."
    )

    @field_validator("input")
    @classmethod
    def _some_inputs(cls, value: Any) -> Any:
        if isinstance(value, list):
            if not value:
                raise ValueError("must hold a text or a token, given an empty list")
            if not isinstance(value[0], int):
                if len(value) > MAX_INPUTS:
                    raise ValueError(f"must hold at most {MAX_INPUTS} inputs, given {len(value)}")
                if not all(value):
                    raise ValueError("must hold no empty input, given one")
        return value

    def inputs(self) -> list[str | list[int]]:
        """The inputs, whichever of the four forms they came in."""
        if isinstance(self.input, str):
            return [self.input]
        inputs: list[str | list[int]] = []
        numbers: list[int] = []
        for item in self.input:
            if isinstance(item, int):
                numbers.append(item)
            else:
                inputs.append(item)
        return [numbers] if numbers else inputs


class Embedding(TypedDict):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class PooledUsage(TypedDict):
    """Token counts; nothing is generated."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(TypedDict):
    """Vectors, in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: PooledUsage


def add_embeddings(app: FastAPI, service: Service) -> None:
    """Add the endpoint."""

    @app.post("/v1/embeddings")
    @described(body=EmbeddingBody, answer=EmbeddingAnswer)
    async def embeddings(request: Request) -> Response:
        """Vectors of texts or token ids."""
        return await pool(request, service, "embeddings", EmbeddingBody, embedding_batch)


def embedding_batch(body: EmbeddingBody, served: Served) -> Batch:
    """One request to the engine per input. Pure computation; long for long inputs.

    Raises:
        ArmillaryError: an input or an option is refused.
    """
    embedder = served.preparer.embedder
    wish = embedder.wish(body.pooling, body.normalize, body.dimensions)
    place = order_of(body, served)
    response_id = new_id("embd-")
    inputs = body.inputs()
    single = len(inputs) == 1 and (isinstance(body.input, str) or isinstance(body.input[0], int))
    requests = []
    for number, text in enumerate(inputs):
        param = "input" if single else f"input[{number}]"
        if isinstance(text, str):
            check_length(len(text), served, param)
        requests.append(embedder.text(text, wish, request_id=f"{response_id}-{number}", param=param, **place))
    prompt = sum(len(request.prompt) for request in requests)
    encoded = body.encoding_format == "base64"
    numbers = len(inputs) * (wish.dimensions or embedder.pooling.size)
    return Batch(response_id, requests, numbers, partial(_answer, served.name, prompt, encoded))


def _answer(model: str, prompt: int, encoded: bool, vectors: list[Vector]) -> EmbeddingAnswer:
    written = _base64 if encoded else _floats
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": written(vector)}
            for index, vector in enumerate(vectors)
        ],
        "model": model,
        "usage": {"prompt_tokens": prompt, "total_tokens": prompt},
    }


def _base64(vector: Vector) -> str:
    return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode("ascii")


def _floats(vector: Vector) -> list[float]:
    numbers: list[float] = vector.tolist()
    return numbers
