"""The path of a request with a body: read it, check it, choose the model, and answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, Protocol, TypeVar

from fastapi import Request
from pydantic_core import to_json
from starlette.responses import Response

from armillary.errors import ArmillaryError
from armillary.server.aside import aside
from armillary.server.body import parse_body, read_body
from armillary.server.errors import error_response
from armillary.server.exchange import current
from armillary.server.fields import AnyBody, AnyGeneration
from armillary.server.generation import Generation, Part
from armillary.server.served import Served
from armillary.server.service import Service
from armillary.server.sse import EventStream, Framing, while_connected
from armillary.server.timelimit import in_time

log = logging.getLogger("armillary.server")

Fields = TypeVar("Fields", bound=AnyGeneration)
Body = TypeVar("Body", bound=AnyBody)
BODY_TIMEOUT_S = 60.0
LARGE_BODY = 8 * 1024
"""Bytes from which a body is tokenised in a thread of its own, so that it does not hold up the streams."""


class Shape(Protocol):
    """Turns what is generated into the answers of one dialect. Read once: `stream` or `whole`."""

    @property
    def framing(self) -> Framing: ...

    def stream(self) -> AsyncGenerator[list[Any], None]:
        """Events, as lists that go out together; an empty list is a silence."""
        ...

    async def whole(self) -> Any:
        """The one body of an answer that is not streamed."""
        ...


def json_response(body: Any) -> Response:
    return Response(to_json(body, inf_nan_mode="null"), media_type="application/json")


async def compute(request: Request, service: Service, fields: type[Body], work: Callable[[Body, Served], Any]) -> Any:
    """What `work` makes of a request's checked body and its model, in a thread of its own where the body is large.

    Raises:
        ArmillaryError: the server, the body or `work` refuses.
    """
    service.check_open()
    async with _body(request, service, fields) as (body, large):
        served = await service.model(body.model or service.name)
        return await asyncio.to_thread(work, body, served) if large else work(body, served)


async def generate(
    request: Request,
    service: Service,
    endpoint: str,
    fields: type[Fields],
    to_parts: Callable[[Fields, Served], list[Part]],
    to_shape: Callable[[Fields, Served, Generation], Shape],
) -> Response:
    """The path of a generation request: read, check, tokenise, then stream or wait."""
    tally = service.begin(endpoint)
    streaming = False
    try:
        service.check_open()
        service.check_room()
        async with _body(request, service, fields) as (body, large):
            served = await service.model(body.model)
            if body.compiles:  # in a thread of its own: compilers that take long must not hold up other bodies
                context = copy_context()
                parts = await aside(partial(context.run, to_parts, body, served), "compile")
            elif large or body.continues:
                parts = await asyncio.to_thread(to_parts, body, served)
            else:
                parts = to_parts(body, served)
        tally.stream = bool(body.stream)
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
            return json_response(await while_connected(request.receive, shape.whole()))
        streaming = True
        return EventStream(
            shape.stream(),
            render=lambda error: error_response(error, service.retry_after(), request.url.path),
            patience_s=service.reader_patience_s,
            on_slow_reader=service.metrics.slow_readers.inc,
            on_end=lambda: service.finish(tally),
            framing=shape.framing,
            over=lambda: generation.over,
        )
    except ArmillaryError as error:
        tally.fail(error)
        raise
    finally:
        if not streaming:
            service.finish(tally)


@asynccontextmanager
async def _body(request: Request, service: Service, fields: type[Body]) -> AsyncIterator[tuple[Body, bool]]:
    """A request's checked body, and whether it is large. It counts against the budget of all bodies meanwhile."""
    with service.bodies.one() as held:
        async with in_time(current.get()) as known:
            raw = await read_body(request.receive, request.headers, service.settings.max_body, BODY_TIMEOUT_S, held)
            large = len(raw) >= LARGE_BODY
            body = await asyncio.to_thread(parse_body, fields, raw) if large else parse_body(fields, raw)
            del raw
            known(body)
            yield body, large
