"""`POST /v1/rerank`: documents in order of their relevance to a query, in the forms of Jina and Cohere."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal, NotRequired

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response
from typing_extensions import TypedDict

from armillary.runtime.rank import Method, Ranking, ranking
from armillary.server.embeddings import PooledUsage
from armillary.server.fields import MAX_INT
from armillary.server.intake import check_length, new_id, order_of
from armillary.server.openapi import described
from armillary.server.pooled import Batch, PooledBody, pool
from armillary.server.served import Served
from armillary.server.service import Service

MAX_DOCUMENTS = 1024
PATHS = ("/v1/rerank", "/v2/rerank", "/rerank")
"""Jina's, Cohere's, and the one without a version that other servers have."""

Text = Annotated[str, Field(min_length=1)]


class Document(BaseModel):
    """A document as an object; fields beside its text are not shown to the model, and come back with it."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    text: Text


class RerankBody(PooledBody):
    """The body of a request."""

    query: Text = Field(description="What is asked.")
    documents: list[Text | Document] = Field(
        min_length=1, max_length=MAX_DOCUMENTS, description="Texts, or objects with a `text`."
    )
    top_n: int | None = Field(None, ge=1, le=MAX_INT, description="How many results at most. Unset: all.")
    return_documents: bool | None = Field(None, description="Whether results carry their document. Unset: true.")

    def texts(self) -> list[str]:
        """The documents' texts."""
        return [document if isinstance(document, str) else document.text for document in self.documents]


class Result(TypedDict):
    """One document, by its place in the request."""

    index: int
    relevance_score: float
    document: NotRequired[dict[str, Any]]


class RerankAnswer(TypedDict):
    """Results, the most relevant first; of equal ones, the earlier document first.

    `method` tells scores apart: `cross-encoder`, a probability of relevance; `cosine`, of the vectors of a model that
    scores no pairs, from -1 to 1.
    """

    id: str
    object: Literal["list"]
    model: str
    method: Method
    results: list[Result]
    usage: PooledUsage


def add_rerank(app: FastAPI, service: Service) -> None:
    """Add the endpoint, described under its first name, and answered under all of them."""

    @app.post(PATHS[0])
    @described(body=RerankBody, answer=RerankAnswer)
    async def rerank(request: Request) -> Response:
        """Documents in order of their relevance to a query."""
        return await pool(request, service, "rerank", RerankBody, rerank_batch)

    async def alias(request: Request) -> Response:
        return await rerank(request)

    for path in PATHS[1:]:
        app.post(path, include_in_schema=False)(alias)


def rerank_batch(body: RerankBody, served: Served) -> Batch:
    """What must be computed. Pure computation; long for long documents.

    Raises:
        ArmillaryError: the query, a document or an option is refused.
    """
    texts = body.texts()
    check_length(len(body.query), served, "query")
    for number, text in enumerate(texts):
        check_length(len(text), served, f"documents[{number}]")
    response_id = new_id("rank-")
    ranked = ranking(served.preparer.embedder, body.query, texts, response_id, **order_of(body, served))
    return Batch(response_id, ranked.requests, len(texts), partial(_answer, body, served.name, response_id, ranked))


def _answer(body: RerankBody, model: str, response_id: str, ranked: Ranking, found: list[object]) -> RerankAnswer:
    scores = ranked.scores(found)
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    results: list[Result] = []
    for place in order[: body.top_n]:
        result: Result = {"index": place, "relevance_score": scores[place]}
        if body.return_documents is not False:
            document = body.documents[place]
            result["document"] = {"text": document} if isinstance(document, str) else document.model_dump()
        results.append(result)
    prompt = sum(len(request.prompt) for request in ranked.requests)
    return {
        "id": response_id,
        "object": "list",
        "model": model,
        "method": ranked.method,
        "results": results,
        "usage": {"prompt_tokens": prompt, "total_tokens": prompt},
    }
