"""What is no request yet has a size and a time; tests/e2e/faults/test_clients.py has a whole gateway."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway.api.direct import DataPlaneProtocol
from gateway.client_connection import ClientRule


async def endless(scope: Any, receive: Any, send: Any) -> None:
    """Send until nobody is there."""
    assert scope["path"] == "/endless"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    async with asyncio.TaskGroup() as group:
        left = group.create_task(_left(receive))
        while not left.done():
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
            await asyncio.sleep(0)


async def _left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the size of the body."""
    if scope["path"] == "/endless":
        await endless(scope, receive, send)
        return
    if scope["path"] == "/large":  # more than a socket takes, less than makes the server wait
        await _send_large(send)
        return
    size, message = 0, {"more_body": scope["path"] != "/at-once"}
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
    body = str(size).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _never(*_: Any, **__: Any) -> None:
    """No path is served without ASGI here."""
    raise AssertionError


async def _send_large(send: Any) -> None:
    body = b"x" * 4_000_000
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def listening(rule: ClientRule, *, keep_alive_s: int = 75) -> AsyncIterator[int]:
    """The port of a server with this rule."""
    loop = asyncio.get_running_loop()
    config = uvicorn.Config(
        hello,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        timeout_keep_alive=keep_alive_s,
    )
    config.load()
    state = ServerState()
    server = await loop.create_server(
        lambda: DataPlaneProtocol(
            _never, {}, rule=rule, config=config, server_state=state, app_state={}, _loop=loop
        ),
        "127.0.0.1",
        0,
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()


def rule(**values: Any) -> ClientRule:
    return ClientRule(
        **{
            "head_bytes_max": 2_000,
            "headers_max": 60,
            "request_timeout_s": 30.0,
            "read_timeout_s": 30.0,
            **values,
        }
    )


async def said(port: int, *pieces: bytes) -> tuple[int, str, bytes]:
    """Status and code of the answer to these bytes, and what follows it before the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)  # as pieces of their own
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        status = int(head.split()[1])
        return (
            status,
            json.loads(body)["error"]["code"] if status != 200 else body.decode(),
            await reader.read(),
        )
    finally:
        writer.close()


GET = b"GET / HTTP/1.1\r\nhost: x\r\n"
CLOSE = b"connection: close\r\n\r\n"


async def test_a_usual_request_is_served_however_it_is_cut() -> None:
    async with listening(limits := rule()) as port:
        assert await said(port, GET + CLOSE) == (200, "0", b"")
        assert await said(port, GET[:10], GET[10:], CLOSE[:-1], CLOSE[-1:]) == (200, "0", b"")
        post = b"POST / HTTP/1.1\r\ncontent-length: 9000\r\n" + CLOSE
        assert await said(port, post + b"x" * 4_000, b"x" * 5_000) == (200, "9000", b"")
        many = b"".join(b"x-%d: y\r\n" % number for number in range(55))
        assert await said(port, GET + many + CLOSE) == (200, "0", b"")
    assert set(limits.refused.values()) == {0}


@pytest.mark.parametrize(
    "pieces",
    [
        (GET + b"".join(b"x-%d: y\r\n" % number for number in range(70)) + CLOSE,),
        (GET + b"".join(b"x-%d: %s\r\n" % (number, b"y" * 60) for number in range(50)) + CLOSE,),
        (GET, b"x-long: " + b"y" * 1_500, b"y" * 1_500),
        (GET, b"x-long: " + b"y" * 1_000, b"y" * 900 + b"\r\nx-more: " + b"y" * 900, CLOSE),
        (b"GET /" + b"y" * 3_000,),
    ],
)
async def test_a_head_that_is_too_large_is_refused_and_the_connection_closed(
    pieces: tuple[bytes, ...],
) -> None:
    async with listening(limits := rule()) as port:
        assert await said(port, *pieces) == (431, "head_too_large", b"")
    assert limits.refused == {"head": 1, "time": 0, "read": 0}


@pytest.mark.parametrize("start", [b"", b"GET", GET, b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nx"])
async def test_what_is_no_request_in_time_is_refused_and_the_connection_closed(start: bytes) -> None:
    async with listening(limits := rule(request_timeout_s=0.2)) as port:
        assert await said(port, start) == (408, "request_timeout", b"")
    assert limits.refused == {"head": 0, "time": 1, "read": 0}


async def test_the_second_request_of_a_connection_has_its_own_time() -> None:
    async with listening(rule(request_timeout_s=1.5)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(GET + b"\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            await reader.readexactly(1)
            await asyncio.sleep(0.6)
        writer.write(GET)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 408")
        writer.close()


async def test_a_body_that_stops_behind_its_answer_is_closed_without_another_one() -> None:
    async with listening(limits := rule(request_timeout_s=0.5)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /at-once HTTP/1.1\r\ncontent-length: 9\r\n\r\nx")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await reader.read() == b"0"
        writer.close()
    assert limits.refused["time"] == 1


async def test_what_is_no_http_is_still_a_400() -> None:
    async with listening(rule()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello there\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 400")
        writer.close()


async def test_who_reads_nothing_of_an_answer_has_left_and_who_reads_slowly_has_not() -> None:
    async with listening(limits := rule(read_timeout_s=3.0)) as port:
        readers = [await asyncio.open_connection("127.0.0.1", port, limit=1_000) for _ in range(2)]
        for _, writer in readers:
            writer.write(b"GET /endless HTTP/1.1\r\n\r\n")
        (reader, slow), (_, silent) = readers
        async with asyncio.timeout(60):
            while not limits.refused["read"]:
                for _ in range(100):
                    assert await reader.read(100_000), "it reads, if slowly"
                await asyncio.sleep(0.05)
        assert await reader.read(100_000)
        slow.close()
        silent.close()
    assert limits.refused == {"head": 0, "time": 0, "read": 1}


async def until_closed(port: int, *pieces: bytes, within_s: float = 20.0) -> bytes:
    """All that is answered to these bytes until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.02)
        async with asyncio.timeout(within_s):
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(100_000):
                    answer += data
    finally:
        writer.close()
    return answer


async def test_trailers_are_bounded_and_no_headers() -> None:
    async with listening(limits := rule()) as port:
        chunked = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n" + CLOSE
        assert await said(port, chunked + b"1\r\nx\r\n0\r\n", b"x-a: b\r\n\r\n") == (200, "1", b"")
        trailer = b"x-long: " + b"y" * 500 + b"\r\n"
        answer = await until_closed(port, chunked + b"0\r\n", *[trailer] * 4)
        assert answer.startswith(b"HTTP/1.1 431")
    assert limits.refused["head"] == 1


async def test_a_body_behind_an_upgrade_is_not_taken_for_a_request() -> None:
    async with listening(rule()) as port:
        inner = GET + b"\r\n"
        head = b"POST / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: %d\r\n\r\n"
        answer = await until_closed(port, head % len(inner), inner)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("first", [b"", GET + b"\r\n"])
async def test_line_ends_alone_keep_no_connection(first: bytes) -> None:
    async with listening(rule(request_timeout_s=0.3), keep_alive_s=1) as port:
        answer = await until_closed(port, first + b"\r\n", b"\r\n", b"\r\n", within_s=10)
    assert answer.startswith(b"HTTP/1.1 200" if first else b"HTTP/1.1 408")


async def test_a_request_that_waits_behind_an_answer_is_not_late() -> None:
    async with listening(limits := rule(request_timeout_s=0.3)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /endless HTTP/1.1\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nx")
        loop = asyncio.get_running_loop()
        end_s, seen = loop.time() + 1.5, b""
        while loop.time() < end_s:
            seen = seen[-20:] + await reader.read(1_000_000)
            assert b"HTTP/1.1" not in seen
        writer.close()
    assert limits.refused == {"head": 0, "time": 0, "read": 0}


async def test_the_second_head_of_a_connection_is_bounded_too() -> None:
    async with listening(limits := rule()) as port:
        many = b"".join(b"x-%d: y\r\n" % number for number in range(70))
        answer = await until_closed(port, GET + b"\r\n", GET + many + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1 431" in answer
        body = b"POST / HTTP/1.1\r\ncontent-length: 3000\r\n\r\n"
        # A body's end and the next head's beginning, in one piece that is larger than a head may be.
        answer = await until_closed(port, body, b"x" * 3_000 + GET[:10], GET[10:] + CLOSE)
        assert answer.count(b"HTTP/1.1 200") == 2
    assert limits.refused["head"] == 1


async def test_a_closed_connection_ends_though_its_answer_is_not_read() -> None:
    async with listening(limits := rule(read_timeout_s=0.5), keep_alive_s=1) as port:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
            client.connect(("127.0.0.1", port))
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, b"GET /large HTTP/1.1\r\n" + CLOSE)
            async with asyncio.timeout(20):
                while not limits.refused["read"]:  # noqa: ASYNC110 - counted, without an event
                    await asyncio.sleep(0.05)
