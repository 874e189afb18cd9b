"""Does hanging up end a connection at once, and is every failure told as what it is?"""

import asyncio
import contextlib
import json
import socket
import ssl
import time

import pytest

from gateway.errors import UpstreamProtocolError, UpstreamTimeout, UpstreamUnavailable
from gateway.upstream.client import Origin
from gateway.upstream.patience import Patience
from tests.integration.gateway.upstream.scripted_server import (
    HELLO,
    Visit,
    answer_with,
    assert_names_nothing,
    cancelled,
    certified,
    client_of,
    eventually,
    exchange,
    full_backlog,
    idle_of,
    on_both_loops,
    post,
    say_hello,
    serving,
    soon,
    start,
    stay_silent,
)
from tests.support.mock_process import MockVllm


# ---------------------------------------------------------------------------------------------- hanging up
@on_both_loops
async def test_cancelling_before_the_head_ends_the_connection() -> None:
    async with serving(stay_silent) as (server, origin), client_of() as client:
        work = start(post(client, origin))
        await soon(server.asked)
        began_s = asyncio.get_running_loop().time()
        await cancelled(work)
        await soon(server.noticed)
        took_s = asyncio.get_running_loop().time() - began_s
        # 100 ms by contract; tens of times more than it takes, and still no room for a forgotten timer.
        assert took_s < 1.0
        await eventually(lambda: not client._connections)
        assert idle_of(client) == 0


@on_both_loops
async def test_cancelling_on_a_used_connection_ends_it_too_and_sends_nothing_again() -> None:
    async def script(visit: Visit) -> None:
        await visit.request()
        visit.send(HELLO)
        visit.server.asked.clear()
        await stay_silent(visit)

    async with serving(script) as (server, origin), client_of() as client:
        await exchange(client, origin)
        work = start(post(client, origin))
        await asyncio.sleep(0)
        await soon(server.asked)
        await cancelled(work)
        await soon(server.noticed)
        assert len(server.visits) == 1


@on_both_loops
async def test_cancelling_in_the_middle_of_the_answer_ends_the_connection() -> None:
    async def script(visit: Visit) -> None:
        await visit.request()
        visit.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
        await visit.until_gone()

    async with serving(script) as (server, origin), client_of() as client:
        response = await post(client, origin)
        assert await response.read() == b"hello"
        work = start(response.read())
        await asyncio.sleep(0.01)
        await cancelled(work)
        response.close()
        await soon(server.noticed)
        assert idle_of(client) == 0


@on_both_loops
async def test_closing_an_answer_in_its_middle_ends_the_connection_and_wakes_the_reader() -> None:
    async def script(visit: Visit) -> None:
        await visit.request()
        visit.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await visit.until_gone()

    async with serving(script) as (server, origin), client_of() as client:
        response = await post(client, origin)
        work = start(response.read())
        await asyncio.sleep(0.01)
        response.close()
        response.close()
        with pytest.raises(UpstreamUnavailable):
            await work
        with pytest.raises(UpstreamUnavailable):
            await response.read()
        await soon(server.noticed)


@on_both_loops
async def test_cancelling_while_a_large_request_is_sent_ends_the_connection() -> None:
    async def script(visit: Visit) -> None:
        await visit.reader.readuntil(b"\r\n\r\n")
        visit.server.asked.set()
        await asyncio.sleep(0.1)
        await visit.until_gone()

    async with serving(script) as (server, origin), client_of() as client:
        work = start(post(client, origin, b"x" * (32 << 20)))
        await soon(server.asked)
        await cancelled(work)
        await soon(server.noticed)


@on_both_loops
async def test_cancelling_while_connecting_leaves_nothing() -> None:
    with full_backlog() as origin:
        async with client_of() as client:
            work = start(post(client, origin))
            await asyncio.sleep(0.05)
            await cancelled(work)
            assert not client._connections


@on_both_loops
async def test_a_storm_of_cancellations_leaves_no_connection() -> None:
    async def script(visit: Visit) -> None:
        while True:
            await visit.request()
            await asyncio.sleep(0.01)
            visit.send(HELLO[:-2])
            await asyncio.sleep(0.01)
            visit.send(HELLO[-2:])

    async with serving(script) as (server, origin), client_of() as client:

        async def hang_up(after_s: float) -> None:
            work = start(exchange(client, origin))
            await asyncio.sleep(after_s)
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                assert await work == b"hello"

        for _ in range(3):
            await asyncio.gather(*(hang_up(number % 30 / 1000) for number in range(300)))
        # Only those that were answered are still here, and each of them is idle.
        await eventually(lambda: len(client._connections) == idle_of(client))
        assert await exchange(client, origin) == b"hello"
        await client.close()
        assert not client._connections
        await eventually(lambda: server.gone == len(server.visits))


@on_both_loops
async def test_vllm_sees_a_hang_up_before_the_first_token() -> None:
    with MockVllm("--ttft-ms", "60000") as mock:
        body = json.dumps(
            {"model": "tollgate-reference", "messages": [{"role": "user", "content": "Hi"}]}
        ).encode()
        async with client_of() as client:
            work = start(post(client, Origin.parse(mock.url), body))
            await asyncio.to_thread(mock.wait_for, in_flight=1)
            await cancelled(work)
            await asyncio.to_thread(mock.wait_for, in_flight=0, aborted=1)


@on_both_loops
async def test_closing_the_client_ends_everything() -> None:
    async with serving(stay_silent) as (server, origin), client_of() as client:
        work = start(post(client, origin))
        await soon(server.asked)
        await client.close()
        with pytest.raises(UpstreamUnavailable):
            await work
        await soon(server.noticed)
        with pytest.raises(UpstreamUnavailable, match="shutting down"):
            await post(client, origin)
        await asyncio.gather(client.close(), client.close())


@on_both_loops
async def test_closing_the_client_while_it_connects_leaves_nothing() -> None:
    async with serving(stay_silent) as (server, origin), client_of() as client:
        work = start(post(client, origin))
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(UpstreamUnavailable, match="shutting down"):
            await work
        assert server.requests == []


# ------------------------------------------------------------------------------------------ what goes wrong
@on_both_loops
async def test_a_closed_port_is_unavailable() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        origin = Origin("127.0.0.1", bound.getsockname()[1], is_tls=False, base_path="")
        async with client_of() as client:
            with pytest.raises(UpstreamUnavailable) as caught:
                await post(client, origin)
            assert_names_nothing(caught.value, origin)
            assert "refused" in caught.value.operator_detail.lower() or "111" in caught.value.operator_detail


@on_both_loops
async def test_an_unknown_name_is_unavailable() -> None:
    origin = Origin.parse("http://replica.invalid:8001")
    async with client_of() as client:
        with pytest.raises(UpstreamUnavailable) as caught:
            await post(client, origin)
        assert_names_nothing(caught.value, origin)


@on_both_loops
async def test_connecting_takes_no_longer_than_allowed() -> None:
    with full_backlog() as origin:
        async with client_of(connect_timeout_s=0.1) as client:
            with pytest.raises(UpstreamTimeout) as caught:
                await post(client, origin)
            assert_names_nothing(caught.value, origin)
            assert "0.1 s" in caught.value.operator_detail
            assert not client._connections


@on_both_loops
async def test_an_answer_that_breaks_off_is_unavailable() -> None:
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello"
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"
    for pieces in ([], [b"HTTP/1.1 2"], [whole[:30]], [whole], [chunked], [b"HTTP/1.1 100 Continue\r\n\r\n"]):
        async with serving(answer_with(*pieces)) as (server, origin), client_of() as client:
            with pytest.raises(UpstreamUnavailable) as caught:
                await exchange(client, origin)
            assert_names_nothing(caught.value, origin)
            assert idle_of(client) == 0
            assert len(server.requests) == 1


@on_both_loops
async def test_what_arrived_before_a_reset_is_read_and_then_the_reset_is_told() -> None:
    async def script(visit: Visit) -> None:
        await visit.request()
        visit.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
        await visit.server.noticed.wait()
        visit.reset()

    async with serving(script) as (server, origin), client_of() as client:
        response = await post(client, origin)
        server.noticed.set()
        await asyncio.sleep(0.05)
        assert await response.read() == b"hello"
        for _ in range(2):
            with pytest.raises(UpstreamUnavailable) as caught:
                await response.read()
        assert_names_nothing(caught.value, origin)
        response.close()


@on_both_loops
async def test_what_is_not_http_is_a_protocol_error() -> None:
    for answer in (
        b"220 mail.example ESMTP\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\na: " + b"x" * 70_000 + b"\r\n\r\n",
    ):
        async with serving(answer_with(answer)) as (_, origin), client_of() as client:
            with pytest.raises(UpstreamProtocolError) as caught:
                await exchange(client, origin)
            assert_names_nothing(caught.value, origin)
            assert idle_of(client) == 0


# ----------------------------------------------------------------------------------------------------- TLS
@on_both_loops
async def test_tls_works_and_its_connections_are_used_again() -> None:
    with certified() as (tls, trusting):
        async with serving(say_hello, tls=tls) as (server, origin), client_of() as client:
            client._tls = trusting
            for _ in range(3):
                assert await exchange(client, origin, b"x" * 200_000) == b"hello"
            assert len(server.visits) == 1


@on_both_loops
async def test_a_certificate_that_nobody_vouches_for_is_refused() -> None:
    with certified() as (tls, _):
        async with serving(say_hello, tls=tls) as (server, origin), client_of() as client:
            with pytest.raises(UpstreamUnavailable) as caught:
                await post(client, origin)
            assert_names_nothing(caught.value, origin)
            assert "certificate" in caught.value.operator_detail.lower()
            assert server.requests == []


@on_both_loops
async def test_cancelling_over_tls_ends_the_connection_at_once() -> None:
    with certified() as (tls, trusting):
        async with serving(stay_silent, tls=tls) as (server, origin), client_of() as client:
            client._tls = trusting
            work = start(post(client, origin))
            await soon(server.asked)
            await cancelled(work)
            await soon(server.noticed)
            await eventually(lambda: not client._connections)


@on_both_loops
async def test_a_handshake_that_never_ends_is_given_up() -> None:
    async def script(visit: Visit) -> None:
        visit.server.asked.set()
        await visit.until_gone()

    async with serving(script) as (server, plain), client_of(connect_timeout_s=0.5) as client:
        origin = Origin(plain.host, plain.port, is_tls=True, base_path="")
        # Reading the system's certificates counts as connecting and may take that long on a busy machine.
        client._tls = ssl.create_default_context()
        with pytest.raises(UpstreamTimeout):
            await post(client, origin)
        await soon(server.noticed)
        assert not client._connections


@on_both_loops
async def test_cancelling_in_the_handshake_ends_the_connection() -> None:
    async def script(visit: Visit) -> None:
        visit.server.asked.set()
        await visit.until_gone()

    async with serving(script) as (server, plain), client_of() as client:
        work = start(post(client, Origin(plain.host, plain.port, is_tls=True, base_path="")))
        await soon(server.asked)
        await cancelled(work)
        await soon(server.noticed)


@on_both_loops
async def test_a_stream_has_an_end_though_its_client_reads_slowly() -> None:
    async def script(visit: Visit) -> None:
        await visit.request()
        visit.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        await visit.until_gone()

    async with serving(script) as (server, origin), client_of() as client:
        response = await post(client, origin)
        until_s = time.monotonic() + 0.3
        response.allow(Patience(0.05, "further token", is_renewed=True, until_s=until_s))
        assert await response.read() == b"a"
        # Nobody waits for the next piece now.
        await soon(server.noticed)
        with pytest.raises(UpstreamTimeout, match="too long in all"):
            await response.read()
        response.close()
