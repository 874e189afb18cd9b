"""Is an answer read right, however it is cut, and is everything bounded? On a transport that only records."""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import UpstreamError, UpstreamProtocolError, UpstreamUnavailable
from gateway.upstream.connection import ONE_WRITE_BYTES_MAX, UNREAD_BYTES_MAX, Connection, read_headers

HEAD_BYTES_MAX: Final = 4096
OK: Final = b"HTTP/1.1 200 OK\r\n"
CHUNKED: Final = (
    OK
    + b"content-type: text/event-stream\r\nTransfer-Encoding: chunked\r\nx-empty:\r\n\r\n"
    + b"7\r\ndata: 1\r\n5;name=value\r\nhello\r\n00A\r\n0123456789\r\n0\r\nx-trailer: yes\r\n\r\n"
)
SIZED: Final = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n"
    + OK
    + b"content-length: 5\r\nx-a: 1\r\nX-A: 2\r\n\r\nhello"
)


class RecordingTransport(asyncio.Transport):
    """Keeps what was done to it; calls connection_lost when asked, as a loop would later."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.is_aborted = False
        self.reads = True

    def write(self, data: Any) -> None:
        assert not self.is_aborted, "written after abort"
        self.writes.append(bytes(data))

    def abort(self) -> None:
        self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_aborted

    def pause_reading(self) -> None:
        assert self.reads
        self.reads = False

    def resume_reading(self) -> None:
        assert not self.reads
        self.reads = True


class Exchange:
    """A connection on a recording transport, with one request sent."""

    def __init__(self) -> None:
        self.transport = RecordingTransport()
        self.gone: list[Connection] = []
        self.connection = Connection(
            "host:1", "/base", head_bytes_max=HEAD_BYTES_MAX, on_gone=self.gone.append
        )
        self.connection.connection_made(self.transport)
        self.sending = asyncio.get_running_loop().create_task(self.send())

    async def send(self, body: bytes = b"{}") -> None:
        await self.connection.send("/v1/x", b"a: b\r\n", body)

    def feed(self, *pieces: bytes) -> None:
        for piece in pieces:
            if not self.transport.is_aborted:
                self.connection.data_received(piece)

    async def outcome(self) -> tuple[int, dict[str, str], bytes]:
        await self.sending
        return self.connection.status, read_headers(self.connection.raw_headers), self.connection.take()

    async def failure(self) -> UpstreamError:
        with contextlib.suppress(UpstreamError):
            await self.sending
        assert self.connection.failure is not None
        return self.connection.failure


async def begun() -> Exchange:
    exchange = Exchange()
    await asyncio.sleep(0)
    assert len(exchange.transport.writes) == 1
    return exchange


async def answered(*pieces: bytes) -> Exchange:
    exchange = await begun()
    exchange.feed(*pieces)
    return exchange


def run(test: Callable[[], Awaitable[None]]) -> None:
    """For hypothesis, which calls its test many times in a row."""

    async def running() -> None:
        await test()

    asyncio.run(running())


# ---------------------------------------------------------------------------------------- how it is cut
CHUNKED_OUTCOME: Final = (
    200,
    {"content-type": "text/event-stream", "transfer-encoding": "chunked", "x-empty": ""},
    b"data: 1hello0123456789",
)
SIZED_OUTCOME: Final = (200, {"content-length": "5", "x-a": "1, 2"}, b"hello")


@pytest.mark.parametrize(("wire", "expected"), [(CHUNKED, CHUNKED_OUTCOME), (SIZED, SIZED_OUTCOME)])
async def test_an_answer_cut_at_any_byte_is_the_same(
    wire: bytes, expected: tuple[int, dict[str, str], bytes]
) -> None:
    for cut in range(1, len(wire)):
        exchange = await answered(wire[:cut], wire[cut:])
        assert await exchange.outcome() == expected, cut
        assert exchange.connection.is_reusable()


@pytest.mark.parametrize(("wire", "expected"), [(CHUNKED, CHUNKED_OUTCOME), (SIZED, SIZED_OUTCOME)])
async def test_an_answer_that_comes_byte_by_byte_is_the_same(
    wire: bytes, expected: tuple[int, dict[str, str], bytes]
) -> None:
    exchange = await answered(*(wire[i : i + 1] for i in range(len(wire))))
    assert await exchange.outcome() == expected


@settings(deadline=None)  # each example starts a loop, which takes long on a busy machine
@given(cuts=st.lists(st.integers(1, len(CHUNKED) - 1), max_size=12))
def test_an_answer_in_any_pieces_is_the_same(cuts: list[int]) -> None:
    borders = [0, *sorted(cuts), len(CHUNKED)]
    pieces = [CHUNKED[a:b] for a, b in itertools.pairwise(borders) if a < b]

    async def test() -> None:
        assert await (await answered(*pieces)).outcome() == CHUNKED_OUTCOME

    run(test)


async def test_a_connection_serves_one_answer_after_another() -> None:
    exchange = await answered(CHUNKED)
    assert await exchange.outcome() == CHUNKED_OUTCOME
    # So often that limits which were not begun anew would be hit.
    for wire, expected in ((SIZED, SIZED_OUTCOME), (CHUNKED, CHUNKED_OUTCOME)) * 100:
        exchange.connection.make_idle(0.0)
        exchange.sending = asyncio.get_running_loop().create_task(exchange.send())
        await asyncio.sleep(0)
        exchange.feed(wire)
        assert await exchange.outcome() == expected
    assert len(exchange.transport.writes) == 201


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_an_answer_that_has_no_body_ends_with_its_head(status: bytes) -> None:
    for headers in (b"", b"content-length: 5\r\n"):
        exchange = await answered(b"HTTP/1.1 " + status + b"\r\n" + headers + b"\r\n")
        assert (await exchange.outcome())[2] == b""
        assert exchange.connection.is_reusable()


# ------------------------------------------------------------------------------------------ what ends it
@pytest.mark.parametrize(
    "head",
    [
        OK + b"connection: close\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n",
    ],
)
async def test_a_connection_that_the_server_will_close_is_not_used_again(head: bytes) -> None:
    exchange = await answered(head + b"ok")
    assert (await exchange.outcome())[2] == b"ok"
    assert not exchange.connection.is_reusable()


async def test_http_1_0_may_keep_alive_when_it_says_so() -> None:
    exchange = await answered(b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok")
    await exchange.outcome()
    assert exchange.connection.is_reusable()


@pytest.mark.parametrize("head", [OK + b"\r\n", b"HTTP/1.0 200 OK\r\n\r\n"])
async def test_an_answer_without_a_length_is_complete_only_at_the_end(head: bytes) -> None:
    exchange = await answered(head, b"to ", b"the ")
    await exchange.sending
    assert exchange.connection.is_under_way
    exchange.feed(b"end")
    exchange.connection.eof_received()
    assert exchange.connection.take() == b"to the end"
    assert not exchange.connection.is_under_way
    assert exchange.connection.failure is None
    assert not exchange.connection.is_reusable()


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"HTTP/1.1 200",
        OK + b"content-length: 5\r\n",
        OK + b"content-length: 5\r\n\r\nhell",
        OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
async def test_an_end_in_the_middle_is_no_answer(wire: bytes) -> None:
    exchange = await answered(*([wire] if wire else []))
    exchange.connection.eof_received()
    failure = await exchange.failure()
    assert isinstance(failure, UpstreamUnavailable)
    assert "host:1" in failure.operator_detail
    assert "host" not in failure.caller_detail
    assert exchange.transport.is_aborted


async def test_a_reset_ends_no_answer_that_only_the_end_ends() -> None:
    exchange = await answered(OK + b"\r\nsome")
    exchange.connection.connection_lost(ConnectionResetError("reset"))
    assert isinstance(await exchange.failure(), UpstreamUnavailable)
    assert exchange.gone == [exchange.connection]


@pytest.mark.parametrize(
    "garbage", [b"x", b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx", b"\r\n\r\nHTTP", b"\x00"]
)
async def test_bytes_behind_the_answer_end_the_connection_but_not_the_answer(garbage: bytes) -> None:
    for pieces in ([SIZED + garbage], [SIZED, garbage], [SIZED[:-1], SIZED[-1:] + garbage]):
        exchange = await answered(*pieces)
        assert await exchange.outcome() == SIZED_OUTCOME
        assert exchange.connection.failure is None
        assert not exchange.connection.is_reusable()
        assert exchange.transport.is_aborted


# ----------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    "wire",
    [
        b"garbage\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01\x00\x01",
        b"HTTP/1.1 20\r\n\r\n",
        b"HTTP/1.1 099 Odd\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nbytes",
        OK + b"content-length: -1\r\n\r\n",
        OK + b"content-length: 1a\r\n\r\n",
        OK + b"content-length: 99999999999999999999999\r\n\r\n",
        OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\n",
        OK + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        OK + b"transfer-encoding: gzip\r\n\r\n",
        OK + b"transfer-encoding: gzip, chunked\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nno size\r\n",
        OK + b"a: b\r\n folded: c\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
    ],
)
async def test_what_is_not_http_is_refused_and_the_connection_ended(wire: bytes) -> None:
    exchange = await answered(wire)
    failure = await exchange.failure()
    assert isinstance(failure, UpstreamProtocolError)
    assert failure.operator_detail.startswith("host:1: ")
    assert failure.caller_detail == "The model's answer could not be read."
    assert exchange.transport.is_aborted
    assert not exchange.connection.is_reusable()


LONG: Final = b"x" * HEAD_BYTES_MAX


@pytest.mark.parametrize(
    "wire",
    [
        OK + b"a: " + LONG + b"\r\n\r\n",
        OK + b"a: " + LONG * 3,
        OK + LONG * 2,
        OK[:-2] + LONG * 2,
        OK + b"a: b\r\n" * 1000 + b"\r\n",
        b"HTTP/1.1 100 Continue\r\na: 12345\r\n\r\n" * 1000,
        OK + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n" + b"a: b\r\n" * 1000,
        OK + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\na: " + LONG * 3,
        OK + b"transfer-encoding: chunked\r\n\r\n1;" + LONG * 3,
    ],
)
@pytest.mark.parametrize("size", [100, 1 << 20])
async def test_a_head_or_a_trailer_over_the_limit_is_refused(wire: bytes, size: int) -> None:
    exchange = await answered(*(wire[i : i + size] for i in range(0, len(wire), size)))
    # What stands behind a body in the same piece is not counted: one read more, at most.
    exchange.feed(LONG + b"x")
    failure = await exchange.failure()
    assert isinstance(failure, UpstreamProtocolError)
    assert "bytes of headers" in failure.operator_detail
    assert exchange.transport.is_aborted


async def test_a_head_just_under_the_limit_passes_however_it_is_cut() -> None:
    wire = OK + b"a: " + LONG[:-200] + b"\r\ncontent-length: 0\r\n\r\n"
    for size in (10, len(wire) // 2, len(wire) - 1, len(wire)):
        exchange = await answered(*(wire[i : i + size] for i in range(0, len(wire), size)))
        assert (await exchange.outcome())[0] == 200


async def test_a_long_body_in_small_chunks_is_no_long_head() -> None:
    exchange = await answered(OK + b"transfer-encoding: chunked\r\n\r\n")
    for _ in range(HEAD_BYTES_MAX):
        exchange.feed(b"1", b"\r\n", b"x", b"\r\n")
    exchange.feed(b"0\r\n\r\n")
    assert len((await exchange.outcome())[2]) == HEAD_BYTES_MAX


async def test_bytes_without_a_request_end_the_connection() -> None:
    exchange = await answered(SIZED)
    await exchange.outcome()
    exchange.connection.make_idle(0.0)
    exchange.feed(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert exchange.transport.is_aborted
    assert not exchange.connection.is_open()


# ------------------------------------------------------------------------------------------- back-pressure
async def test_reading_stops_above_the_limit_and_goes_on_when_it_was_read() -> None:
    exchange = await answered(OK + b"content-length: %d\r\n\r\n" % (3 * UNREAD_BYTES_MAX))
    await exchange.sending
    exchange.feed(b"x" * UNREAD_BYTES_MAX)
    assert exchange.transport.reads
    exchange.feed(b"x")
    assert not exchange.transport.reads
    assert len(exchange.connection.take()) == UNREAD_BYTES_MAX + 1
    assert exchange.transport.reads


async def test_reading_on_after_the_connection_broke_does_no_harm() -> None:
    exchange = await answered(OK + b"content-length: %d\r\n\r\n" % (3 * UNREAD_BYTES_MAX))
    exchange.feed(b"x" * (UNREAD_BYTES_MAX + 1))
    exchange.connection.abort("broken")
    assert len((await exchange.outcome())[2]) == UNREAD_BYTES_MAX + 1
    assert not exchange.transport.reads


async def large_request(body: bytes) -> Exchange:
    exchange = await answered(SIZED)
    await exchange.outcome()
    exchange.transport.writes.clear()
    exchange.sending = asyncio.get_running_loop().create_task(exchange.send(body))
    exchange.connection.pause_writing()
    await asyncio.sleep(0)
    return exchange


async def test_a_small_request_is_one_write() -> None:
    exchange = await begun()
    assert exchange.transport.writes == [
        b"POST /base/v1/x HTTP/1.1\r\nhost: host:1\r\ncontent-length: 2\r\na: b\r\n\r\n{}"
    ]
    exchange.sending.cancel()


async def test_a_large_request_waits_while_the_server_reads_slowly() -> None:
    body = bytes(range(256)) * (5 * ONE_WRITE_BYTES_MAX // 256) + b"end"
    exchange = await large_request(body)
    assert len(exchange.transport.writes) == 1
    exchange.connection.resume_writing()
    await asyncio.sleep(0)
    assert b"".join(exchange.transport.writes).partition(b"\r\n\r\n")[2] == body
    assert max(map(len, exchange.transport.writes)) == ONE_WRITE_BYTES_MAX
    exchange.feed(SIZED)
    assert await exchange.outcome() == SIZED_OUTCOME
    assert exchange.connection.is_reusable()


async def test_an_answer_to_half_a_request_is_handed_out_and_the_connection_is_not_used_again() -> None:
    exchange = await large_request(b"x" * (1 << 20))
    exchange.feed(SIZED)
    assert await exchange.outcome() == SIZED_OUTCOME
    assert len(exchange.transport.writes) == 1
    assert not exchange.connection.is_reusable()


async def test_once_an_answer_begins_the_rest_of_the_request_is_not_held_back() -> None:
    exchange = await large_request(b"x" * (1 << 20))
    exchange.feed(SIZED[:-1])
    await exchange.sending
    assert len(b"".join(exchange.transport.writes)) > 1 << 20
    exchange.feed(SIZED[-1:])
    # The transport still holds a part of the request.
    assert not exchange.connection.is_reusable()


async def test_a_connection_that_breaks_in_the_middle_of_a_request_is_no_answer() -> None:
    exchange = await large_request(b"x" * (1 << 20))
    exchange.connection.connection_lost(BrokenPipeError("broken pipe"))
    failure = await exchange.failure()
    assert isinstance(failure, UpstreamUnavailable)
    assert "broken pipe" in failure.operator_detail


# -------------------------------------------------------------------------------------------- cancellation
async def test_cancelling_before_the_head_aborts() -> None:
    exchange = await begun()
    exchange.sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exchange.sending
    assert exchange.transport.is_aborted
    assert not exchange.connection.is_open()


async def test_cancelling_in_the_moment_of_the_answer_aborts() -> None:
    exchange = await begun()
    exchange.feed(SIZED)
    exchange.sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exchange.sending
    assert exchange.transport.is_aborted


async def test_cancelling_a_large_request_aborts() -> None:
    exchange = await large_request(b"x" * (1 << 20))
    exchange.sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exchange.sending
    assert exchange.transport.is_aborted
