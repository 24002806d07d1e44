"""The application: which path is answered by what."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from armillary.errors import ArmillaryError, Code
from armillary.server.body import parse_body, read_body
from armillary.server.chat import ChatBody, ChatShape, chat_parts
from armillary.server.completions import CompletionBody, CompletionShape, completion_parts
from armillary.server.edge import Edge
from armillary.server.errors import error_response
from armillary.server.fields import AnyGeneration
from armillary.server.generation import Generation, Part
from armillary.server.health import add_health
from armillary.server.page import add_page
from armillary.server.served import Served
from armillary.server.service import Service
from armillary.server.sse import EventStream, while_connected
from armillary.version import __version__

log = logging.getLogger("armillary.server")

Fields = TypeVar("Fields", bound=AnyGeneration)
BODY_TIMEOUT_S = 60.0
LARGE_BODY = 8 * 1024
"""Bytes from which a body is tokenised in a thread of its own, so that it does not hold up the streams."""


def create_app(service: Service) -> FastAPI:
    """Make the application over a service. It answers from the start; until the model is loaded, with 503."""
    app = FastAPI(
        title="Armillary",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(
        Edge, api_keys=service.settings.api_keys, metrics=service.metrics, retry_after=service.retry_after
    )
    _add_error_handlers(app, service)
    add_health(app, service)
    if service.settings.page:
        add_page(app)
    _add_models(app, service)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _generate(request, service, "completions", CompletionBody, completion_parts, CompletionShape)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await _generate(request, service, "chat", ChatBody, chat_parts, ChatShape)

    return app


async def _generate(
    request: Request,
    service: Service,
    endpoint: str,
    fields: type[Fields],
    to_parts: Callable[[Fields, Served], list[Part]],
    to_shape: Callable[[Fields, Served, Generation], CompletionShape | ChatShape],
) -> Response:
    """The path of a generation request: read, check, tokenise, then stream or wait."""
    tally = service.begin(endpoint)
    streaming = False
    try:
        service.check_open()
        with service.bodies.one() as held:
            raw = await read_body(request.receive, request.headers, service.settings.max_body, BODY_TIMEOUT_S, held)
            large = len(raw) >= LARGE_BODY
            body = await asyncio.to_thread(parse_body, fields, raw) if large else parse_body(fields, raw)
            del raw
            served = await service.model(body.model)
            parts = await asyncio.to_thread(to_parts, body, served) if large else to_parts(body, served)
        generation = Generation(served, parts, tally)
        shape = to_shape(body, served, generation)
        log.debug(
            "%s: %d prompts of %d tokens, %d choices, at most %d tokens each, stream %s",
            parts[0].response_id,
            len(parts),
            sum(len(part.request.prompt) for part in parts),
            generation.count,
            parts[0].request.max_tokens,
            bool(body.stream),
        )
        if not body.stream:
            return _json(await while_connected(request.receive, shape.whole()))
        streaming = True
        return EventStream(
            shape.stream(),
            render=lambda error: error_response(error, service.retry_after(), request.url.path),
            patience_s=service.reader_patience_s,
            on_slow_reader=service.metrics.slow_readers.inc,
            on_end=lambda: service.finish(tally),
        )
    except ArmillaryError as error:
        tally.fail(error)
        raise
    finally:
        if not streaming:
            service.finish(tally)


def _add_models(app: FastAPI, service: Service) -> None:
    def card(served: Served) -> dict[str, Any]:
        return {
            "id": served.name,
            "object": "model",
            "created": served.created,
            "owned_by": "armillary",
            "max_model_len": served.limits.max_context,
        }

    @app.get("/v1/models")
    async def models() -> Response:
        service.check_open()
        return _json({"object": "list", "data": [card(served) for served in [service.served] if served is not None]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return _json(card(await service.model(name)))


def _add_error_handlers(app: FastAPI, service: Service) -> None:
    """Everything that the framework would answer in its own words is said in OpenAI's."""

    @app.exception_handler(HTTPException)
    async def framework_error(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        where = f"{request.method} {path[:200]}"
        if error.status_code == 405:
            response = _plain_error(Code.METHOD_NOT_ALLOWED, f"{where} is not a method of this path", path)
            response.headers.update(error.headers or {})
            return response
        if error.status_code == 404:
            return _plain_error(Code.NOT_FOUND, f"{where} is not a path of this server", path)
        return _plain_error(Code.INVALID_REQUEST, str(error.detail), path)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return _plain_error(Code.INVALID_REQUEST, str(error), request.url.path)

    @app.exception_handler(ArmillaryError)
    async def own_error(request: Request, error: ArmillaryError) -> Response:
        if error.code is Code.TOO_LARGE:
            raise error  # the edge answers it before the body is read to its end
        return error_response(error, service.retry_after(), request.url.path)


def _plain_error(code: Code, message: str, path: str) -> Response:
    return error_response(ArmillaryError(code, message), path=path)


def _json(body: Any) -> Response:
    return Response(to_json(body), media_type="application/json")
