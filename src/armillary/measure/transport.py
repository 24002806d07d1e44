"""The network under the load client: HTTP/1.1 with as little processor time of its own as can be.

A load client runs beside the server as often as not, and what it burns is missing there: with a layer of streams and
locks for every piece of an answer, as general HTTP clients have, reading a token takes about as long as a small model
needs to compute it. Here a connection is a protocol of the event loop, its answers are parsed in C, and each piece
wakes its reader once.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, cast

import httptools
import httpx


class Connection(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self) -> None:
        self.open = True
        self.keeps = False
        """Whether another request may follow the complete answer."""
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None
        self._begin()

    def _begin(self) -> None:
        self._parser: Any = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.pieces: deque[bytes] = deque()
        self.headed = self.complete = False
        self._error: str | None = None

    def send(self, request: bytes) -> None:
        """Write a request; what arrives from here on is its answer."""
        self._begin()
        if self._transport is not None:  # there is one as soon as there is a connection
            self._transport.write(request)

    async def arrival(self, timeout: float | None) -> None:
        """Wait for news.

        Raises:
            httpx.ReadTimeout: there were none.
            httpx.RemoteProtocolError: the other side said what is no HTTP, or left before its answer was complete.
        """
        if self._error is None and self.open:
            self._reader = self._loop.create_future()
            try:
                await (self._reader if timeout is None else asyncio.wait_for(self._reader, timeout))
            except TimeoutError:
                raise httpx.ReadTimeout(f"nothing was heard for {timeout} s") from None
            finally:
                self._reader = None
        if self._error is not None and not self.pieces:
            raise httpx.RemoteProtocolError(self._error)

    def close(self) -> None:
        """Close at once."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    # ---------------------------------------------------------------- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.complete:  # nobody asked
            return self.close()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"the answer must be HTTP/1.1, given something else: {error}")
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if not self.complete and self._error is None:
            named = {name.lower() for name, _ in self.headers}
            if self.headed and not named & {b"content-length", b"transfer-encoding"}:
                self.complete = True  # the end of the connection is the answer's
            else:
                self._fail("the server closed the connection before its answer was complete")
        self._wake()

    # ---------------------------------------------------------------- called by the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self.headed = self.status >= 200

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)

    def on_message_complete(self) -> None:
        if not self.headed:  # an interim answer, and the real one comes
            self.headers = []
            return
        self.complete = True
        self.keeps = self._parser.should_keep_alive()

    # ---------------------------------------------------------------- inside

    def _fail(self, why: str) -> None:
        self._error = why
        if self._transport is not None:
            self._transport.abort()
        self.open = False

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class Transport(httpx.AsyncBaseTransport):
    """Connections to servers, as many as there are requests at once; those whose answer is complete are used again.

    What an answer says it is encoded as is left to `httpx`. Redirects, proxies and HTTP/2 are not known here.
    """

    def __init__(self) -> None:
        self._idle: dict[tuple[str, str, int], list[Connection]] = {}
        self._tls: ssl.SSLContext | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the response's stream reads its body as it comes.

        Raises: `httpx.ConnectError`, `httpx.ConnectTimeout`, and as of `Connection.arrival`.
        """
        limits = request.extensions.get("timeout", {})
        url = request.url
        port = url.port or (443 if url.scheme == "https" else 80)
        origin = (url.scheme, url.host, port)
        body = await request.aread()
        connection = self._known(origin) or await self._connect(origin, limits.get("connect"))
        head = b"".join(b"%b: %b\r\n" % pair for pair in request.headers.raw)
        try:
            connection.send(b"%b %b HTTP/1.1\r\n%b\r\n%b" % (request.method.encode(), url.raw_path, head, body))
            while not connection.headed:
                await connection.arrival(limits.get("read"))
        except BaseException:
            connection.close()
            raise
        stream = _Body(connection, limits.get("read"), self._idle.setdefault(origin, []))
        return httpx.Response(connection.status, headers=connection.headers, stream=stream)

    async def aclose(self) -> None:
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        self._idle = {}

    def _known(self, origin: tuple[str, str, int]) -> Connection | None:
        idle = self._idle.get(origin, [])
        while idle:
            connection = idle.pop()
            if connection.open:
                return connection
        return None

    async def _connect(self, origin: tuple[str, str, int], timeout: float | None) -> Connection:
        scheme, host, port = origin
        if scheme == "https" and self._tls is None:
            self._tls = httpx.create_ssl_context(trust_env=False)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                _, connection = await loop.create_connection(
                    Connection, host, port, ssl=self._tls if scheme == "https" else None
                )
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection to {host}:{port} within {timeout} s") from None
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"no connection to {host}:{port}: {error}") from error
        return connection


class _Body(httpx.AsyncByteStream):
    """The body of an answer. The connection is used again where it was read to its end."""

    def __init__(self, connection: Connection, timeout: float | None, idle: list[Connection]) -> None:
        self._connection = connection
        self._timeout = timeout
        self._idle = idle

    async def __aiter__(self) -> AsyncIterator[bytes]:
        connection = self._connection
        while True:
            if connection.pieces:
                piece = b"".join(connection.pieces)
                connection.pieces.clear()
                yield piece
            elif connection.complete:
                return
            else:
                await connection.arrival(self._timeout)

    async def aclose(self) -> None:
        connection = self._connection
        if connection.complete and connection.keeps and connection.open and not connection.pieces:
            self._idle.append(connection)
        else:
            connection.close()
