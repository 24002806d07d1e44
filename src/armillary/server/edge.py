"""What every request passes first and last: its id, its key, and the promise that failures look like errors."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from armillary.errors import ArmillaryError, Code, reason_of
from armillary.server.body import Disconnected, discard_body
from armillary.server.errors import NO_HTTP, error_response
from armillary.server.exchange import Exchange, current
from armillary.server.keys import Keyring
from armillary.server.logs import log_end
from armillary.server.metrics import ServerMetrics
from armillary.server.sse import SlowReader

log = logging.getLogger("armillary.server")

PROBES = ("/health", "/ready", "/metrics")
"""Asked every few seconds, so not worth a line each."""
OPEN = (*PROBES, "/", "/favicon.ico", "/openapi.json")
OPEN_BELOW = "/page/"
"""No key is asked for these paths, nor for those that begin so; for every other one, where keys are set."""
ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}\Z")
ID_HEADERS = (b"x-request-id", b"request-id")
"""OpenAI's clients read the first, Anthropic's the second."""
VERSIONS = ("1.1", "1.0")
"""Of HTTP. The parser knows more."""
Endpoint = Callable[[Request], Awaitable[Response]]
DISCARD_BYTES, DISCARD_S = 256 * 1024**2, 5.0
"""How much of a refused body is swallowed so that its sender gets to read the refusal."""


class Edge:
    """The outermost layer of the application (ASGI), but for what browsers ask beforehand.

    Args:
        posts: what answers a POST, by path. It is asked at once: of what the application would do on the way there and
            with every message on the way back, nothing concerns it, and it costs a token more than its text does.
        keys: who may ask, and how much.
        retry_after: seconds for the `Retry-After` header, where a refusal does not know them itself.
    """

    def __init__(
        self,
        app: ASGIApp,
        posts: Mapping[str, Endpoint],
        keys: Keyring,
        metrics: ServerMetrics,
        retry_after: Callable[[], float],
    ) -> None:
        self._app = app
        self._posts = posts
        self._keys = keys
        self._metrics = metrics
        self._retry_after = retry_after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Looked up a dozen times; of several with one name the first counts.
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        posted = self._posts.get(scope["path"]) if scope["method"] == "POST" else None
        given = headers.get("x-request-id", "")
        request_id = given if ID.match(given) else f"req_{os.urandom(12).hex()}"
        exchange = Exchange(request_id, headers)
        token = current.set(exchange)
        status = 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._metrics.responses.labels(str(status)).inc()
                own = [(name, request_id.encode()) for name in ID_HEADERS]
                if exchange.caller is not None and scope["method"] == "POST":
                    own += exchange.caller.headers()
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        try:
            if scope["http_version"] not in VERSIONS:
                raise ArmillaryError(Code.INVALID_REQUEST, NO_HTTP)
            if scope["path"] not in OPEN and not scope["path"].startswith(OPEN_BELOW):
                self._admit(exchange, scope["method"])
            if posted is None:
                await self._app(scope, receive, named)
            else:
                response = await posted(Request(scope, receive))
                await response(scope, receive, named)
        except Disconnected:
            status = 499
        except SlowReader:
            log.warning("%s: cut, its client stopped reading", request_id)  # left incomplete, the connection is closed
        except Exception as failure:
            if status:
                raise
            error = failure if isinstance(failure, ArmillaryError) else None
            if error is None:
                log.exception("%s: the server failed", request_id)
                error = ArmillaryError(Code.ENGINE_FAILED, f"the server failed on this request ({request_id})")
            if error.code is Code.TOO_LARGE or error.message == NO_HTTP:
                await self._refuse_early(error, scope, receive, named)
            else:
                await error_response(error, self._retry_after(), scope["path"])(scope, receive, named)
        finally:
            level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
            log_end(log, level, exchange, scope["method"], scope["path"], status)
            current.reset(token)

    def _admit(self, exchange: Exchange, method: str) -> None:
        """Recognise who asks, and count what they ask for: every POST is one request of theirs."""
        try:
            exchange.caller = self._keys.find(exchange.headers)
            if method == "POST":
                exchange.caller.arrive()
        except ArmillaryError as error:
            self._metrics.rejected.labels("", reason_of(error)).inc()
            raise

    @staticmethod
    async def _refuse_early(error: ArmillaryError, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer first, then swallow what the client is still sending, then close."""
        response = error_response(error, path=scope["path"])
        response.headers["connection"] = "close"
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        await discard_body(receive, DISCARD_BYTES, DISCARD_S)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
