"""`/v1/responses` as endpoints: make a response, read it again, delete it."""

from __future__ import annotations

import hashlib
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from armillary.errors import Code
from armillary.server.endpoint import generate, json_response
from armillary.server.generation import Generation, Part
from armillary.server.openapi import GUARDED, described
from armillary.server.responses import ResponseShape, response_parts
from armillary.server.responses_answer import DeletedResponse, ResponseAnswer, ResponseEvent
from armillary.server.responses_body import Item, ResponsesBody
from armillary.server.responses_store import ResponseStore
from armillary.server.served import Served
from armillary.server.service import Service

OF_KEPT = (*GUARDED, Code.NOT_FOUND)
"""How asking for a kept response may fail."""


def add_responses(app: FastAPI, service: Service) -> None:
    """Add the endpoints, with a store that they share."""
    store = ResponseStore(service.settings.response_store)

    @app.post("/v1/responses")
    @described(body=ResponsesBody, answer=ResponseAnswer, stream=ResponseEvent)
    async def create_response(request: Request) -> Response:
        """Answer a conversation in items. Kept, unless `store` is false, for `previous_response_id`."""
        owner = _owner(request, service)
        earlier: list[Item] = []

        def to_parts(body: ResponsesBody, served: Served) -> list[Part]:
            if body.previous_response_id is not None:
                earlier.extend(store.conversation(owner, body.previous_response_id))
            return response_parts(body, served, earlier)

        def to_shape(body: ResponsesBody, served: Served, generation: Generation) -> ResponseShape:
            def keep(response: dict[str, Any]) -> bool:
                return body.store is not False and store.keep(owner, response, [*earlier, *body.input])

            return ResponseShape(body, served, generation, keep)

        return await generate(request, service, "responses", ResponsesBody, to_parts, to_shape)

    @app.get("/v1/responses/{response_id}")
    @described(answer=ResponseAnswer, errors=OF_KEPT)
    async def read_response(request: Request, response_id: str) -> Response:
        """A response that is kept."""
        return Response(store.read(_owner(request, service), response_id), media_type="application/json")

    @app.delete("/v1/responses/{response_id}")
    @described(answer=DeletedResponse, errors=OF_KEPT)
    async def delete_response(request: Request, response_id: str) -> Response:
        """Forget a response. Those that went on from it keep their conversation."""
        store.drop(_owner(request, service), response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})


def _owner(request: Request, service: Service) -> str:
    """Who alone may read what this request makes: whoever has its key."""
    if not service.keys.asks:
        return ""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    key = key if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    return hashlib.sha256(key.strip().encode("latin-1", "replace")).hexdigest()
