"""Do requests, answers and kept connections behave over real sockets?"""

import asyncio
import contextlib
import json
import socket

import pytest

from gateway.errors import UpstreamProtocolError, UpstreamUnavailable
from gateway.upstream.client import Origin
from gateway.upstream.connection import UNREAD_BYTES_MAX
from tests.integration.gateway.upstream.scripted_server import (
    HELLO,
    Script,
    Visit,
    answer_with,
    client_of,
    eventually,
    exchange,
    idle_of,
    on_both_loops,
    post,
    say_hello,
    serving,
    soon,
    start,
)
from tests.support.mock_process import MockVllm


# --------------------------------------------------------------------------------------- requests, answers
@on_both_loops
async def test_a_request_arrives_as_it_was_written() -> None:
    async with serving(say_hello) as (server, origin), client_of() as client:
        at_prefix = Origin(origin.host, origin.port, is_tls=False, base_path="/prefix")
        assert await exchange(client, at_prefix, b'{"model": "m"}') == b"hello"
        assert server.requests == [
            (
                b"POST /prefix/v1/chat/completions HTTP/1.1\r\n"
                b"host: 127.0.0.1:%d\r\ncontent-length: 14\r\ncontent-type: application/json\r\n\r\n"
                % origin.port,
                b'{"model": "m"}',
            )
        ]


@on_both_loops
async def test_pieces_come_as_they_arrive_and_what_waited_comes_at_once() -> None:
    proceed = asyncio.Event()

    async def script(visit: Visit) -> None:
        await visit.request()
        visit.send(b"HTTP/1.1 200 OK\r\nX-Kind: stream\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await proceed.wait()
        for piece in (b"3\r\ntwo\r\n", b"5\r\nthree\r\n", b"0\r\n\r\n"):
            visit.send(piece)
            await asyncio.sleep(0.01)
        await visit.until_gone()

    async with serving(script) as (_, origin), client_of() as client:
        response = await post(client, origin)
        assert response.status == 200
        assert response.headers == {"x-kind": "stream", "transfer-encoding": "chunked"}
        assert await response.read() == b"one"
        proceed.set()
        await asyncio.sleep(0.2)
        assert await response.read() == b"twothree"
        assert await response.read() == b""
        assert await response.read() == b""
        response.close()
        assert idle_of(client) == 1


@on_both_loops
async def test_a_stream_in_pieces_of_any_size_is_the_same() -> None:
    with MockVllm("--tokens", "6") as mock:
        origin = Origin.parse(mock.url)
        body = json.dumps(
            {"model": "tollgate-reference", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
        ).encode()
        async with client_of() as client:
            texts = set()
            for fault, sizes in (("split", (1, 2, 3, 7, 50)), ("coalesce", (1, 2, 100))):
                for size in sizes:
                    mock.fault(fault, size, times=1)
                    events = (await exchange(client, origin, body)).split(b"\n\n")
                    assert events[-2:] == [b"data: [DONE]", b""]
                    choices = [json.loads(event[6:])["choices"] for event in events[:-2]]
                    texts.add("".join(c["delta"].get("content") or "" for found in choices for c in found))
            assert len(texts) == 1
            assert texts != {""}
            assert idle_of(client) == 1


@on_both_loops
async def test_a_limit_on_the_whole_answer_holds() -> None:
    async with serving(say_hello) as (server, origin), client_of() as client:
        response = await post(client, origin)
        assert await response.read_all(limit_bytes=5) == b"hello"
        response.close()
        response = await post(client, origin)
        with pytest.raises(UpstreamProtocolError) as caught:
            await response.read_all(limit_bytes=4)
        assert "larger than 4 bytes" in caught.value.operator_detail
        response.close()
        assert len(server.visits) == 1


@on_both_loops
async def test_a_large_request_arrives_whole_over_a_slow_reader() -> None:
    body = bytes(range(256)) * 4096 * 12

    async def script(visit: Visit) -> None:
        visit.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        await asyncio.sleep(0.1)
        assert await visit.request() == body
        visit.send(HELLO)
        assert await visit.request() == body[:100_000]
        visit.send(HELLO)

    async with serving(script) as (server, origin), client_of() as client:
        assert await exchange(client, origin, body) == b"hello"
        assert await exchange(client, origin, body[:100_000]) == b"hello"
        assert len(server.visits) == 1


@on_both_loops
async def test_an_answer_before_the_whole_request_was_read_is_seen() -> None:
    async def script(visit: Visit) -> None:
        await visit.reader.readuntil(b"\r\n\r\n")
        visit.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await visit.server.asked.wait()

    async with serving(script) as (server, origin), client_of() as client:
        response = await post(client, origin, b"x" * (32 << 20))
        assert response.status == 413
        assert await response.read_all(limit_bytes=10) == b"big"
        response.close()
        assert idle_of(client) == 0
        server.asked.set()


@on_both_loops
async def test_small_packets_leave_at_once() -> None:
    async with serving(say_hello) as (_, origin), client_of() as client:
        await exchange(client, origin)
        (connection,) = client._connections
        found = connection._open_transport().get_extra_info("socket")
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


# ------------------------------------------------------------------------------------------------ the pool
@on_both_loops
async def test_a_connection_is_used_again_and_the_youngest_first() -> None:
    async with serving(say_hello) as (server, origin), client_of() as client:
        first, second = await asyncio.gather(post(client, origin), post(client, origin))
        for response in (first, second):
            assert await response.read() == b"hello"
            assert await response.read() == b""
        youngest = second._connection
        first.close()
        second.close()
        second.close()
        assert idle_of(client) == 2
        response = await post(client, origin)
        assert response._connection is youngest
        response.close()
        assert len(server.visits) == 2


@on_both_loops
async def test_two_hundred_requests_at_once_share_their_connections_later() -> None:
    async with serving(say_hello) as (server, origin), client_of() as client:
        for _ in range(4):
            answers = await asyncio.gather(*(exchange(client, origin) for _ in range(200)))
            assert answers == [b"hello"] * 200
            assert idle_of(client) == 200
        assert len(server.visits) == 200
        assert len(server.requests) == 800


@on_both_loops
async def test_answers_are_never_mixed_up() -> None:
    async def echo(visit: Visit) -> None:
        while True:
            body = await visit.request()
            await asyncio.sleep(len(body) % 3 / 1000)
            visit.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async with serving(echo) as (_, origin), client_of() as client:

        async def worker(number: int) -> None:
            for turn in range(20):
                body = b"%d." % number * (turn + 1)
                work = start(exchange(client, origin, body))
                if (number + turn) % 4 == 0:
                    await asyncio.sleep(0.001)
                    work.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    assert await work == body

        await asyncio.gather(*(worker(number) for number in range(40)))


@on_both_loops
async def test_an_idle_connection_is_closed_before_the_server_would() -> None:
    async def script(visit: Visit) -> None:
        await visit.request()
        visit.send(HELLO)
        await visit.until_gone()

    async with serving(script) as (server, origin), client_of(idle_max_s=0.1) as client:
        await exchange(client, origin)
        assert idle_of(client) == 1
        await soon(server.noticed)
        assert idle_of(client) == 0
        assert client._sweep_timer is None
        assert client._idle == {}


@on_both_loops
async def test_a_connection_that_was_idle_for_too_long_is_not_used_though_no_timer_ran() -> None:
    async with serving(say_hello) as (server, origin), client_of() as client:
        await exchange(client, origin)
        (connection,) = client._connections
        connection.idle_since_s -= 4.1
        await exchange(client, origin)
        assert len(server.visits) == 2
        await eventually(lambda: connection not in client._connections)


@on_both_loops
async def test_the_sweep_leaves_the_younger_ones() -> None:
    async with serving(say_hello) as (_, origin), client_of(idle_max_s=60) as client:
        await asyncio.gather(*(exchange(client, origin) for _ in range(3)))
        oldest, *_ = client._idle[origin]
        oldest.idle_since_s -= 61
        client._sweep()
        assert idle_of(client) == 2
        assert oldest not in client._idle[origin]
        assert client._sweep_timer is not None


@on_both_loops
async def test_no_more_idle_connections_than_allowed_are_kept() -> None:
    async with serving(say_hello) as (_, origin), client_of(idle_connections_max=3) as client:
        await asyncio.gather(*(exchange(client, origin) for _ in range(10)))
        assert idle_of(client) == 3
        await eventually(lambda: len(client._connections) == 3)


@on_both_loops
async def test_a_connection_that_the_server_ends_while_idle_leaves_the_pool() -> None:
    async def script(visit: Visit) -> None:
        await visit.request()
        visit.send(HELLO)

    async with serving(script) as (server, origin), client_of() as client:
        await exchange(client, origin)
        await eventually(lambda: idle_of(client) == 0)
        assert not client._connections
        assert await exchange(client, origin) == b"hello"
        assert len(server.visits) == 2


@on_both_loops
async def test_a_connection_whose_transport_is_closing_is_neither_kept_nor_used() -> None:
    async with serving(say_hello) as (server, origin), client_of() as client:
        response = await post(client, origin)
        # As a transport does by itself after a failed write, before it tells us.
        next(iter(client._connections))._open_transport().abort()
        response.close()
        assert idle_of(client) == 0
        await exchange(client, origin)
        next(iter(client._idle[origin]))._open_transport().abort()
        assert await exchange(client, origin) == b"hello"
        assert len(server.visits) == 3
        assert len(server.requests) == 3


@on_both_loops
async def test_bytes_while_idle_end_the_connection() -> None:
    async def script(visit: Visit) -> None:
        await visit.request()
        visit.send(HELLO)
        await asyncio.sleep(0.05)
        visit.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        await visit.until_gone()

    async with serving(script) as (server, origin), client_of() as client:
        await exchange(client, origin)
        await soon(server.noticed)
        assert idle_of(client) == 0


@on_both_loops
async def test_bytes_behind_the_answer_end_the_connection() -> None:
    async with serving(answer_with(HELLO + b"garbage")) as (_, origin), client_of() as client:
        assert await exchange(client, origin) == b"hello"
        assert idle_of(client) == 0


@on_both_loops
async def test_a_server_that_announces_the_end_is_believed() -> None:
    for head in (
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ):
        async with serving(answer_with(head, b"he", b"llo")) as (_, origin), client_of() as client:
            assert await exchange(client, origin) == b"hello"
            assert idle_of(client) == 0


# ---------------------------------------------------------------------------- the race with a closing server
def stale_after_one(then: Script) -> Script:
    """The first connection serves once and dies on its second request, without an answer."""

    async def script(visit: Visit) -> None:
        if visit is not visit.server.visits[0]:
            await then(visit)
            return
        await visit.request()
        visit.send(HELLO)
        await visit.request()

    return script


@on_both_loops
async def test_a_stale_connection_is_replaced_without_a_word() -> None:
    async with serving(stale_after_one(say_hello)) as (server, origin), client_of() as client:
        await exchange(client, origin)
        assert await exchange(client, origin, b"again") == b"hello"
        assert [body for _, body in server.requests] == [b"{}", b"again", b"again"]
        assert len(server.visits) == 2


@on_both_loops
async def test_a_stale_connection_is_replaced_once_only() -> None:
    async def die(visit: Visit) -> None:
        await visit.request()

    async with serving(stale_after_one(die)) as (server, origin), client_of() as client:
        await exchange(client, origin)
        with pytest.raises(UpstreamUnavailable):
            await exchange(client, origin)
        assert len(server.visits) == 2
        assert len(server.requests) == 3


@on_both_loops
async def test_a_fresh_connection_that_dies_is_not_replaced() -> None:
    async with serving(answer_with()) as (server, origin), client_of() as client:
        with pytest.raises(UpstreamUnavailable):
            await exchange(client, origin)
        assert len(server.requests) == 1


@on_both_loops
async def test_a_used_connection_that_dies_after_the_first_byte_is_not_replaced() -> None:
    async def script(visit: Visit) -> None:
        await visit.request()
        visit.send(HELLO)
        await visit.request()
        visit.send(b"H")

    async with serving(script) as (server, origin), client_of() as client:
        await exchange(client, origin)
        with pytest.raises(UpstreamUnavailable):
            await exchange(client, origin)
        assert len(server.requests) == 2


# ------------------------------------------------------------------------------------------- back-pressure
@on_both_loops
async def test_a_slow_reader_holds_the_server_back_and_loses_nothing() -> None:
    piece = b"x" * 65536
    total = 40 * UNREAD_BYTES_MAX
    sent = 0

    async def script(visit: Visit) -> None:
        nonlocal sent
        await visit.request()
        visit.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        while sent < total:
            visit.send(piece)
            await visit.writer.drain()
            sent += len(piece)
        await visit.until_gone()

    async with serving(script) as (_, origin), client_of() as client:
        response = await post(client, origin)
        await asyncio.sleep(0.3)
        connection = response._connection
        assert connection is not None
        # What the kernel's socket buffers hold comes on top of ours.
        assert sent < total / 2
        received = 0
        while data := await response.read():
            # One read of the socket may come on top, 256 KB on both loops.
            assert len(data) <= UNREAD_BYTES_MAX + (256 << 10)
            received += len(data)
            if received < total / 8:
                await asyncio.sleep(0.005)
        assert received == total
        response.close()
        assert idle_of(client) == 1
