"""How relevant documents are to a query: by a model that reads both at once, or by the angle between vectors."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Unpack

import numpy as np

from armillary.core.request import Request
from armillary.runtime.embed import Embedder, probability
from armillary.runtime.pooling import Sums
from armillary.runtime.prepare import Place

Method = Literal["cross-encoder", "cosine"]


@dataclass(frozen=True, slots=True)
class Ranking:
    """The requests that rank documents, and what their answers mean.

    Attributes:
        method: cross-encoder: one request per document, each a score, told as a probability. cosine: one for
            the query and one per document, each a vector of length 1; the score is their product.
    """

    method: Method
    requests: list[Request]

    def scores(self, answers: Sequence[object]) -> list[float]:
        """One score per document, in their order."""
        if self.method == "cross-encoder":
            return [probability(float(answer)) for answer in answers]  # type: ignore[arg-type]
        query, *documents = (_doubles(answer) for answer in answers)
        return [min(1.0, max(-1.0, float((query * document).sum()))) for document in documents]


def ranking(
    embedder: Embedder, query: str, documents: Sequence[str], request_id: str, **place: Unpack[Place]
) -> Ranking:
    """What must be computed to rank documents.

    Raises:
        ArmillaryError: INVALID_REQUEST, CONTEXT_LENGTH; the parameter names the query or the document.
    """

    def where(number: int) -> str:
        return f"documents[{number}]"

    if embedder.scores:
        return Ranking(
            "cross-encoder",
            [
                embedder.pair(query, text, request_id=f"{request_id}-{number}", param=where(number), **place)
                for number, text in enumerate(documents)
            ],
        )
    wish = embedder.wish(normalize=True)
    first = embedder.text(query, wish, request_id=f"{request_id}-query", param="query", **place)
    others = [
        embedder.text(text, wish, request_id=f"{request_id}-{number}", param=where(number), **place)
        for number, text in enumerate(documents)
    ]
    return Ranking("cosine", [first, *others])


def relevances(
    embedder: Embedder, run: Callable[[list[Request]], list[object]], query: str, documents: Sequence[str]
) -> list[float]:
    """The score of each document, in their order."""
    if not documents:
        return []
    ranked = ranking(embedder, query, documents, f"rank-{secrets.token_hex(12)}")
    return ranked.scores(run(ranked.requests))


def _doubles(answer: object) -> Sums:
    return np.asarray(answer, dtype=np.float64)
