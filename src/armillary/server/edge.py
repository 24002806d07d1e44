"""What every request passes first and last: its id, its key, and the promise that failures look like errors."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from armillary.errors import ArmillaryError, Code
from armillary.server.body import Disconnected, discard_body
from armillary.server.errors import error_response
from armillary.server.metrics import ServerMetrics
from armillary.server.sse import SlowReader

log = logging.getLogger("armillary.server")

GUARDED = ("/v1", "/tokenize", "/detokenize")
"""Paths that begin so need a key where keys are set; health and metrics never do."""
PROBES = ("/health", "/ready", "/metrics")
"""Asked every few seconds, so not worth a line each."""
ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}\Z")
DISCARD_BYTES, DISCARD_S = 256 * 1024**2, 5.0
"""How much of a refused body is swallowed so that its sender gets to read the refusal."""


class Edge:
    """The outermost layer of the application (ASGI).

    Args:
        api_keys: empty for none asked.
        retry_after: seconds for the `Retry-After` header.
    """

    def __init__(
        self, app: ASGIApp, api_keys: tuple[str, ...], metrics: ServerMetrics, retry_after: Callable[[], int]
    ) -> None:
        self._app = app
        self._keys = [_digest(key.encode()) for key in api_keys]
        self._metrics = metrics
        self._retry_after = retry_after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if ID.match(given) else f"req_{secrets.token_hex(12)}"
        arrived = time.monotonic()
        status = 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._metrics.responses.labels(str(status)).inc()
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            await send(message)

        try:
            if scope["path"].startswith(GUARDED):
                self._check_key(headers.get("authorization", ""), headers.get("x-api-key", ""))
            await self._app(scope, receive, named)
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
            if error.code is Code.TOO_LARGE:
                await self._refuse_early(error, scope, receive, named)
            else:
                await error_response(error, self._retry_after(), scope["path"])(scope, receive, named)
        finally:
            took = (time.monotonic() - arrived) * 1000
            level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
            log.log(level, "%s %s %r %d %.0f ms", request_id, scope["method"], scope["path"], status, took)

    def _check_key(self, authorization: str, plain: str) -> None:
        """Compare with every key, each in constant time, so that timing tells nothing about any of them.

        Args:
            plain: the key in the header that Anthropic's clients send instead.
        """
        if not self._keys:
            return
        scheme, _, key = authorization.partition(" ")
        key = key if scheme.lower() == "bearer" else plain
        given = _digest(key.strip().encode("latin-1", "replace"))  # headers are decoded so; this is what was sent
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        if not any(matches):
            told = "a wrong one" if key else "none"
            raise ArmillaryError(
                Code.UNAUTHORIZED,
                "the Authorization header must be `Bearer` and a valid API key, or x-api-key must be one, "
                f"given {told}",
            )

    @staticmethod
    async def _refuse_early(error: ArmillaryError, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer first, then swallow what the client is still sending, then close."""
        response = error_response(error, path=scope["path"])
        response.headers["connection"] = "close"
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        await discard_body(receive, DISCARD_BYTES, DISCARD_S)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _digest(key: bytes) -> bytes:
    """Keys are compared by digest, so that not even their length shows."""
    return hashlib.sha256(key).digest()
