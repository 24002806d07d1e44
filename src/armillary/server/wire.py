"""Connections, before there is a request: slow heads, long heads, too many at once, and what is no HTTP.

A layer under the application, around the HTTP protocol of uvicorn that parses in C. It sees bytes and counts them;
parsing stays there, which refuses a request that says its length in two ways: a proxy in front may have believed the
other one, and what follows then be somebody else's request. What is refused has the API's error shape.
"""

from __future__ import annotations

import asyncio
import resource
import secrets
from http import HTTPStatus
from typing import cast

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from armillary.errors import ArmillaryError, Code, Refused, reason_of
from armillary.server.errors import NO_HTTP, error_response
from armillary.server.metrics import ServerMetrics

MAX_HEAD = 64 * 1024
"""Bytes of one request's first line and headers."""
SPARE_FILES = 64
"""Open files that are not connections: the listener, the loop, the journal, weights, log."""
PROBES = (b"GET /health", b"GET /ready", b"GET /metrics", b"HEAD /health", b"HEAD /ready")
"""What is answered although there are too many connections: else a full server would be taken for a dead one."""
DISCARD_BYTES, DISCARD_S = 256 * 1024**2, 10.0
"""How much of a body is swallowed that was answered before it was read."""
LINGER_S = 2.0
"""Seconds that a connection which is one too many may take to say what it wants."""


def most_connections(setting: int | None) -> int:
    """The limit on connections: what the deployment says, or what the process may have open."""
    if setting is not None:
        return setting
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if files == resource.RLIM_INFINITY else max(16, files - SPARE_FILES)


def guarded_protocol(header_timeout_s: float, limit: int, metrics: ServerMetrics) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol, watched.

    Args:
        header_timeout_s: seconds in which a request's head must be complete.
        limit: connections at once.
    """

    class Guarded(HttpToolsProtocol):
        """One connection."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self._head = 0
            """Bytes since the last complete head, while the next one is awaited."""
            self._rest = False
            """Whether those are no head, but the rest of a body."""
            self._asked = False
            """Whether anything was ever said on this connection."""
            self._timer: asyncio.TimerHandle | None = None
            super().connection_made(transport)
            self._surplus = len(self.connections) > limit
            self._probe: bytes | None = b""
            """Of a connection that is one too many, what was said; None once that was a probe."""
            self._arm(min(header_timeout_s, LINGER_S) if self._surplus else header_timeout_s)

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._asked = True
            if self._surplus and not (data := self._of_probe(data)):
                return
            before = self.cycle
            between = before is None or before.response_complete
            if between:
                # The head of the next request, or the rest of a body that was answered before it was read.
                self._rest = before is not None and before.more_body
                if self._timer is None:
                    self._arm(DISCARD_S if self._rest else header_timeout_s)
                self._head += len(data)
            super().data_received(data)
            if self.cycle is not before:
                self._rest = False
                self._disarm()
            elif between and self._head > (DISCARD_BYTES if self._rest else MAX_HEAD):
                self._refuse(
                    ArmillaryError(
                        Code.TOO_LARGE, f"the head of a request must be at most {MAX_HEAD} bytes, given more"
                    )
                )

        def _of_probe(self, data: bytes) -> bytes:
            """The head of the one probe that a surplus connection may ask, once it is complete; nothing else passes.

            What comes behind it is dropped, and the connection ends with the answer: else whatever is pipelined
            behind a probe would be served beyond the limit.
            """
            if self._probe is None:
                return b""
            self._probe += data
            head, end, _ = self._probe.partition(b"\r\n\r\n")
            if end and head.startswith(PROBES):
                self._probe = None
                return head + b"\r\nconnection: close" + end
            begun = head.startswith(PROBES) or any(probe.startswith(head) for probe in PROBES)
            if end or not begun or len(head) > MAX_HEAD:
                self._refuse(
                    Refused(
                        Code.UNAVAILABLE,
                        "connections",
                        f"{len(self.connections)} connections are open and at most {limit} may be; try again later",
                    )
                )
            return b""

        def send_400_response(self, msg: str) -> None:
            """What cannot be parsed. Called by uvicorn."""
            self._refuse(ArmillaryError(Code.INVALID_REQUEST, NO_HTTP))

        def _arm(self, seconds: float) -> None:
            self._timer = self.loop.call_later(seconds, self._too_slow)

        def _disarm(self) -> None:
            self._head = 0
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            self._refuse(
                ArmillaryError(
                    Code.TOO_SLOW,
                    f"the head of a request must be complete within {header_timeout_s:g} seconds, given {self._head} "
                    "bytes by then",
                )
            )

        def _refuse(self, error: ArmillaryError) -> None:
            """Answer and close. Where nothing was asked, or an answer is under way or given, only close."""
            busy = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
            if self._asked and not busy and not self._rest and not self.transport.is_closing():
                metrics.rejected.labels("", reason_of(error)).inc()
                response = error_response(error)
                metrics.responses.labels(str(response.status_code)).inc()
                self.transport.write(_raw(response))
            self._disarm()
            self.transport.close()

    return cast(type[asyncio.Protocol], Guarded)


def _raw(response: Response) -> bytes:
    """A response on the wire, for a connection that ends with it."""
    own = {"connection": "close", "x-request-id": f"req_{secrets.token_hex(12)}"}
    response.headers.update(own)
    head = f"HTTP/1.1 {response.status_code} {HTTPStatus(response.status_code).phrase}\r\n".encode()
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
    return head + lines + b"\r\n" + bytes(response.body)
