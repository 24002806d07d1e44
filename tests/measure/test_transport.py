"""The network under the load client, against servers that say every byte by hand."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from armillary.measure.client import connect


class Server:
    """Answers the n-th request of all connections with the n-th answer, piece by piece; None closes the connection."""

    def __init__(self, *answers: list[bytes | None]) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                for piece in self.answers.pop(0):
                    if piece is None:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.001)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def ask(server: Server, times: int = 1, read_timeout: float | None = None) -> list[bytes]:
    """The bodies of so many answers, one request after another with one client."""

    async def asked() -> list[bytes]:
        async with server as url, connect(None) as client:
            timeout = httpx.Timeout(None, read=read_timeout)
            return [(await client.post(url + "/a?b=1", content=b"{}", timeout=timeout)).content for _ in range(times)]

    return asyncio.run(asked())


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n there\r\n0\r\n\r\n"
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_an_answer_is_the_same_however_it_is_cut(size: int) -> None:
    pieces = [CHUNKED[at : at + size] for at in range(0, len(CHUNKED), size)]
    server = Server(pieces, [PLAIN])
    assert ask(server, times=2) == [b"hello there", b"hello"]
    assert server.connections == 1


def test_what_is_sent_is_http() -> None:
    server = Server([PLAIN])
    ask(server)
    head, body = server.requests[0].split(b"\r\n\r\n")
    first, *headers = head.split(b"\r\n")
    assert first == b"POST /a?b=1 HTTP/1.1" and body == b"{}"
    assert b"Content-Length: 2" in headers and any(line.startswith(b"Host: 127.0.0.1:") for line in headers)


@pytest.mark.parametrize(
    "answer",
    [
        [b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello", None],
        [b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", None],
        [b"HTTP/1.0 200 OK\r\n\r\nhello", None],
    ],
    ids=["said so", "no length", "HTTP/1.0"],
)
def test_a_closed_connection_is_not_used_again(answer: list[bytes | None]) -> None:
    server = Server(answer, [PLAIN])
    assert ask(server, times=2) == [b"hello", b"hello"]
    assert server.connections == 2


def test_interim_answers_are_passed_over() -> None:
    assert ask(Server([b"HTTP/1.1 100 Continue\r\n\r\n", PLAIN])) == [b"hello"]


@pytest.mark.parametrize(
    "answer",
    [
        [None],
        [b"HTTP/1.1 200 OK\r\n", None],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello", None],
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", None],
        [b"SSH-2.0-OpenSSH_9.2\r\n"],
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"],
        [b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"],
    ],
    ids=["nothing", "half a head", "half a body", "half the chunks", "no HTTP", "no chunks", "another protocol"],
)
def test_what_is_cut_off_or_no_http_is_an_error(answer: list[bytes | None]) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="closed the connection|must be HTTP"):
        ask(Server(answer))


def test_a_silent_server_runs_into_the_read_timeout() -> None:
    with pytest.raises(httpx.ReadTimeout):
        ask(Server([b"HTTP/1.1 200 OK\r\n", *[b""] * 2000]), read_timeout=0.05)


def test_nobody_there_is_a_connect_error() -> None:
    async def asked() -> None:
        async with Server() as url:
            pass
        async with connect(None) as client:
            await client.get(url)

    with pytest.raises(httpx.ConnectError, match=r"127\.0\.0\.1"):
        asyncio.run(asked())


def test_a_server_without_tls_is_a_connect_error() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(PLAIN)
        writer.close()

    async def asked() -> None:
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        async with server, connect(None) as client:
            await client.get(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")

    with pytest.raises(httpx.ConnectError):
        asyncio.run(asked())


def test_an_answer_that_is_not_read_to_its_end_closes_its_connection() -> None:
    server = Server([CHUNKED[:-5], *[b""] * 2000], [PLAIN])

    async def asked() -> bytes:
        async with server as url, connect(None) as client:
            async with client.stream("POST", url, content=b"{}") as response:
                async for piece in response.aiter_raw():
                    assert piece
                    break
            return (await client.post(url, content=b"{}")).content

    assert asyncio.run(asked()) == b"hello"
    assert server.connections == 2


def test_requests_at_once_have_connections_of_their_own() -> None:
    server = Server(*[[PLAIN]] * 20)

    async def asked() -> None:
        async with server as url, connect(None) as client:
            for _ in range(2):
                answers = await asyncio.gather(*(client.post(url, content=b"{}") for _ in range(10)))
                assert [answer.content for answer in answers] == [b"hello"] * 10

    asyncio.run(asked())
    assert server.connections == 10
