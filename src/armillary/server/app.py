"""The application: which path is answered by what."""

from __future__ import annotations

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from armillary.errors import ArmillaryError, Code
from armillary.server.answers import ChatAnswer, ChatChunk, CompletionAnswer
from armillary.server.body import invalid_query
from armillary.server.chat import ChatBody, ChatShape, chat_parts
from armillary.server.completions import CompletionBody, CompletionShape, completion_parts
from armillary.server.edge import Edge, Endpoint
from armillary.server.embeddings import add_embeddings
from armillary.server.endpoint import generate
from armillary.server.errors import error_response
from armillary.server.health import add_health
from armillary.server.live import add_live
from armillary.server.messages import add_messages
from armillary.server.models import add_models
from armillary.server.openapi import add_document, check_query, described, description_of
from armillary.server.page import add_page
from armillary.server.rerank import add_rerank
from armillary.server.responses_routes import add_responses
from armillary.server.service import Service
from armillary.server.timeline import add_timeline
from armillary.server.tokens import add_tokens
from armillary.version import __version__

EXPOSED = (
    "x-request-id", "retry-after", "retry-after-ms", "x-should-retry",
    *(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")),
)  # fmt: skip
"""Headers that a page of another origin may read."""


def serving_app(service: Service) -> ASGIApp:
    """Make the application over a service. It answers from the start; until the model is loaded, with 503."""
    app = create_app(service)
    edge = Edge(app, _posts(app), service.keys, service.metrics, service.retry_after)
    return _with_cors(edge, service.settings.cors_origins)


def _posts(app: FastAPI) -> dict[str, Endpoint]:
    """What is asked with a body of its own, by path. It reads and checks that body itself."""
    routes = [route for route in app.routes if isinstance(route, APIRoute) and route.methods == {"POST"}]
    found = {route.path: (route.endpoint, description_of(route)) for route in routes}
    return {path: endpoint for path, (endpoint, said) in found.items() if said is not None and said.body is not None}


def create_app(service: Service) -> FastAPI:
    """Make what answers each path."""
    app = FastAPI(
        title="Armillary",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        dependencies=[Depends(check_query)],
    )
    _add_error_handlers(app, service)
    add_health(app, service)
    if service.settings.page:
        add_page(app)
    add_models(app, service)
    add_timeline(app, service)
    add_live(app, service)

    @app.post("/v1/completions")
    @described(body=CompletionBody, answer=CompletionAnswer, stream=CompletionAnswer)
    async def completions(request: Request) -> Response:
        """Go on from a text or from tokens."""
        return await generate(request, service, "completions", CompletionBody, completion_parts, CompletionShape)

    @app.post("/v1/chat/completions")
    @described(body=ChatBody, answer=ChatAnswer, stream=ChatChunk)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await generate(request, service, "chat", ChatBody, chat_parts, ChatShape)

    add_embeddings(app, service)
    add_rerank(app, service)
    add_responses(app, service)
    add_messages(app, service)
    add_tokens(app, service)
    add_document(app)
    return app


def _with_cors(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    """Let pages of other origins call, where the deployment names them. Outside of everything: also of refusals."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=EXPOSED,
        max_age=600,
    )


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
        return error_response(invalid_query(error.errors()), path=request.url.path)

    @app.exception_handler(ArmillaryError)
    async def own_error(request: Request, error: ArmillaryError) -> Response:
        if error.code is Code.TOO_LARGE:
            raise error  # the edge answers it before the body is read to its end
        return error_response(error, service.retry_after(), request.url.path)


def _plain_error(code: Code, message: str, path: str) -> Response:
    return error_response(ArmillaryError(code, message), path=path)
