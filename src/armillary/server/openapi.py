"""`GET /openapi.json`: the document of the API, made of what the endpoints themselves say.

An endpoint is described once, by `described`, with the very model that checks its bodies; a test holds that the
options it refuses are those that the document does not have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json
from starlette.responses import Response

from armillary.errors import ArmillaryError, Code
from armillary.server.errors import LOOKS, AnthropicError, OpenAIError, speaks_anthropic
from armillary.version import __version__

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

REFERENCE = "#/components/schemas/{model}"
OF_LOADING = (
    Code.INVALID_DEPLOYMENT,
    Code.INVALID_CHECKPOINT,
    Code.UNSUPPORTED_MODEL,
    Code.MEMORY,
    Code.UNREACHABLE,
)
"""What may become of a model that somebody asks to be loaded."""
OF_BODIES = tuple(
    code for code in Code if code not in (*OF_LOADING, Code.METHOD_NOT_ALLOWED, Code.NOT_FOUND, Code.FORBIDDEN)
)
"""What may become of a request with a body."""
OPEN = (Code.UNAVAILABLE,)
"""What may become of a request without one, for which no key is asked."""
GUARDED = (Code.INVALID_REQUEST, Code.UNAUTHORIZED, Code.QUEUE_FULL, Code.UNAVAILABLE)
"""The same, where a key is asked."""


@dataclass(frozen=True, slots=True)
class Description:
    """What an endpoint takes and answers; its docstring says what it does.

    Attributes:
        body: the model that checks request bodies.
        answer: the type of the JSON answer; None where the answer is no JSON.
        query: query parameters and their types.
        stream: the type of one event, where the endpoint can answer in server-sent events.
        media: the answer's media type.
        errors: how it may fail.
    """

    body: type[BaseModel] | None
    answer: Any
    query: dict[str, Any]
    stream: Any
    media: str
    errors: tuple[Code, ...]


def described(
    *,
    body: type[BaseModel] | None = None,
    answer: Any = None,
    query: dict[str, Any] | None = None,
    stream: Any = None,
    media: str = "application/json",
    errors: Iterable[Code] | None = None,
) -> Callable[[Endpoint], Endpoint]:
    """Decorate an endpoint, inside of `@app.get(...)` and its like; see `Description`."""
    if errors is None:
        errors = GUARDED if body is None else OF_BODIES

    def mark(endpoint: Endpoint) -> Endpoint:
        description = Description(body, answer, query or {}, stream, media, tuple(errors))
        endpoint.__dict__["described"] = description
        return endpoint

    return mark


def description_of(route: APIRoute) -> Description | None:
    """What `described` said about a route."""
    found = getattr(route.endpoint, "described", None)
    return found if isinstance(found, Description) else None


async def check_query(request: Request) -> None:
    """Refuse query parameters that an endpoint does not have: each does something, or is refused.

    Only where nothing is posted: clients add words of their own to the addresses of what they post (`?beta=true`), and
    what they ask for stands in the body. Probes take any, as whoever probes may not choose.

    Raises:
        ArmillaryError: INVALID_REQUEST, naming them and those that there are.
    """
    route = request.scope.get("route")
    found = description_of(route) if isinstance(route, APIRoute) else None
    if found is None or found.body is not None or Code.UNAUTHORIZED not in found.errors:
        return
    unknown = [name for name in request.query_params if name not in found.query]
    if unknown:
        known = ", ".join(sorted(found.query)) or "none"
        given = ", ".join(f"{name[:40]!r}" for name in unknown[:5])
        raise ArmillaryError(
            Code.INVALID_REQUEST,
            f"query parameters must be those of this endpoint ({known}), given {given}",
            unknown[0][:40] or None,
        )


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI 3.1 document of every described route."""
    routes = [
        (route, found) for route in app.routes if isinstance(route, APIRoute) and (found := description_of(route))
    ]
    types: dict[Any, Literal["validation", "serialization"]] = {OpenAIError: "serialization"}
    types[AnthropicError] = "serialization"
    for _, description in routes:
        for kind in (description.body, *description.query.values()):
            types.setdefault(kind, "validation")
        for kind in (description.answer, description.stream):
            types.setdefault(kind, "serialization")
    types.pop(None, None)
    schemas, definitions = TypeAdapter.json_schemas(
        [(kind, mode, TypeAdapter(kind)) for kind, mode in types.items()], ref_template=REFERENCE
    )
    of_type = {kind: schema for (kind, _), schema in schemas.items()}
    paths: dict[str, Any] = {}
    for route, description in routes:
        path = re.sub(r"{(\w+):\w+}", r"{\1}", route.path)
        for method in sorted(route.methods or ()):
            paths.setdefault(path, {})[method.lower()] = _operation(route, method, path, description, of_type)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Armillary", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def add_document(app: FastAPI) -> None:
    """Serve the document. It is made at the first request, so that starting does not wait for it."""
    made: list[bytes] = []

    @app.get("/openapi.json")
    @described(answer=dict[str, Any], errors=())
    async def openapi() -> Response:
        """This document."""
        if not made:
            made.append(to_json(document(app)))
        return Response(made[0], media_type="application/json")


def _operation(
    route: APIRoute, method: str, path: str, description: Description, of_type: dict[Any, Any]
) -> dict[str, Any]:
    about = " ".join((route.endpoint.__doc__ or "").split())
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", path)
    ]
    parameters += [{"name": name, "in": "query", "schema": of_type[kind]} for name, kind in description.query.items()]
    operation: dict[str, Any] = {
        "operationId": "_".join([method.lower(), *re.findall(r"\w+", path)]),
        "summary": about.split(". ")[0].rstrip("."),
        "description": about,
        "responses": {"200": _answer(description, of_type)} | _errors(path, description, of_type),
    }
    if parameters:
        operation["parameters"] = parameters
    if description.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": of_type[description.body]}},
        }
    if Code.UNAUTHORIZED in description.errors:
        operation["security"] = [{}, {"bearer": []}, {"x-api-key": []}]
    return operation


def _answer(description: Description, of_type: dict[Any, Any]) -> dict[str, Any]:
    schema = {"type": "string"} if description.answer is None else of_type[description.answer]
    content: dict[str, Any] = {description.media: {"schema": schema}}
    if description.stream is not None:
        # OpenAPI 3.1 knows no schema of a stream's events; what `data:` holds is told beside it.
        content["text/event-stream"] = {"schema": {"type": "string"}, "x-event": of_type[description.stream]}
    return {"description": "The answer.", "content": content}


def _errors(path: str, description: Description, of_type: dict[Any, Any]) -> dict[str, Any]:
    """One entry per status, with the codes that come under it."""
    schema = of_type[AnthropicError if speaks_anthropic(path) else OpenAIError]
    by_status: dict[int, list[str]] = {}
    for code in description.errors:
        by_status.setdefault(LOOKS[code].status, []).append(f"`{code.value}`")
    return {
        str(status): {"description": ", ".join(codes), "content": {"application/json": {"schema": schema}}}
        for status, codes in sorted(by_status.items())
    }
