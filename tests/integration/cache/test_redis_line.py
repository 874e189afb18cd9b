"""Does every look-up get its own answer, whatever becomes of the connection that it shares?

The server is a script on a socket: it says what a real Redis cannot be brought to say at a wished moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from gateway.cache.redis_line import WRITE_BYTES_MAX, WRITES_MAX, RedisLine
from gateway.cache.resp import get_command, set_command
from gateway.cache.storage import CacheBroken

WITHIN_S = 20.0
"""A busy machine must not make an answer late."""
SHORT_S = 0.05
"""For those that get none."""
_GET = re.compile(rb"GET\r\n\$\d+\r\n([^\r]*)\r\n")


class Script:
    """One connection's other end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def asked(self, count: int) -> list[bytes]:
        """The names of so many look-ups."""
        heard = b""
        while len(names := _GET.findall(heard)) < count:
            piece = await self._reader.read(65_536)
            assert piece, f"the line was closed after {heard!r}"
            heard += piece
        return names

    async def until(self, end: bytes) -> None:
        await self._reader.readuntil(end)

    async def exactly(self, count: int) -> None:
        await self._reader.readexactly(count)

    def say(self, said: bytes) -> None:
        self._writer.write(said)

    async def is_left(self) -> None:
        """Until the other end is closed."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(65_536):
                continue

    def leave(self) -> None:
        self._writer.transport.abort()


@contextlib.asynccontextmanager
async def line_to(
    play: Callable[[Script], Awaitable[None]], *, is_open: bool = True, within_s: float = WITHIN_S
) -> AsyncIterator[tuple[RedisLine, list[Exception]]]:
    failures: list[Exception] = []
    loop = asyncio.get_running_loop()
    line = RedisLine(loop, failures.append, within_s=within_s)
    played: asyncio.Future[None] = loop.create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await play(Script(reader, writer))
            played.set_result(None)
        except (AssertionError, OSError, EOFError) as error:
            played.set_exception(error)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    if is_open:
        await loop.create_connection(lambda: line, host, port)
    try:
        yield line, failures
        line.end(CacheBroken("over"))
        if is_open:
            await asyncio.wait_for(played, 30)
    finally:
        line.end(CacheBroken("over"))
        server.close()
        await server.wait_closed()


async def outcome(future: asyncio.Future[bytes | None]) -> bytes | str | None:
    try:
        return await asyncio.wait_for(future, 30)
    except CacheBroken as error:
        return str(error)


async def test_look_ups_of_one_turn_go_out_together_and_are_answered_in_order() -> None:
    async def play(redis: Script) -> None:
        assert await redis.asked(3) == [b"a", b"b", b"c"]
        redis.say(b"$1\r\n1\r\n$-1\r\n$1\r\n3\r\n")
        assert await redis.asked(2) == [b"d", b"e"]
        redis.say(b"$-1\r\n$-1\r\n")

    async with line_to(play) as (line, _):
        assert await asyncio.gather(*map(line.ask, (b"a", b"b", b"c"))) == [b"1", None, b"3"]
        assert await asyncio.gather(*map(line.ask, (b"d", b"e"))) == [None, None]


async def test_answers_to_be_kept_go_before_look_ups_and_are_answered_by_counting() -> None:
    async def play(redis: Script) -> None:
        await redis.until(set_command(b"k", b"v", 9) + set_command(b"l", b"w", 9) + get_command(b"a"))
        redis.say(b"+OK\r\n-OOM no\r\n$1\r\n1\r\n")

    async with line_to(play) as (line, failures):
        assert line.write(lambda: set_command(b"k", b"v", 9), 1)
        assert line.write(lambda: set_command(b"l", b"w", 9), 1)
        assert await line.ask(b"a") == b"1"
        assert list(map(str, failures)) == ["OOM no"]


async def test_an_answer_that_no_look_up_follows_is_sent_soon_and_waited_for() -> None:
    async def play(redis: Script) -> None:
        await redis.until(set_command(b"k", b"v", 9))
        redis.say(b"+OK\r\n")

    async with line_to(play) as (line, failures):
        line.write(lambda: set_command(b"k", b"v", 9), 1)
        await asyncio.wait_for(line.drain(), 30)
        assert failures == []


@pytest.mark.parametrize("cut", range(1, 14))
async def test_a_batch_may_be_answered_in_two_pieces(cut: int) -> None:
    said = b"$-1\r\n$3\r\nabc\r\n$-1\r\n"

    async def play(redis: Script) -> None:
        await redis.asked(3)
        redis.say(said[:cut])
        await asyncio.sleep(0.005)
        redis.say(said[cut:])
        await redis.asked(1)
        redis.say(b"$-1\r\n")

    async with line_to(play) as (line, _):
        assert await asyncio.gather(*map(line.ask, (b"a", b"b", b"c"))) == [None, b"abc", None]
        assert await line.ask(b"d") is None


async def test_a_late_reply_answers_nobody_else() -> None:
    is_late = asyncio.Event()

    async def play(redis: Script) -> None:
        await redis.asked(1)
        await is_late.wait()
        assert await redis.asked(1) == [b"second"]
        redis.say(b"$5\r\nfirst\r\n")
        await asyncio.sleep(0.005)
        redis.say(b"$6\r\nsecond\r\n")

    async with line_to(play, within_s=0.5) as (line, _):
        assert await outcome(line.ask(b"first")) == "no answer within 500 ms"
        is_late.set()
        assert await line.ask(b"second") == b"second"


async def test_every_look_up_is_told_in_time_while_an_older_one_waits() -> None:
    async def play(redis: Script) -> None:
        await redis.is_left()

    async with line_to(play, within_s=SHORT_S) as (line, _):
        for name in (b"a", b"b", b"c"):
            assert await outcome(line.ask(name)) == "no answer within 50 ms"


async def test_a_request_that_has_gone_leaves_its_place_in_the_order() -> None:
    async def play(redis: Script) -> None:
        assert await redis.asked(2) == [b"b", b"c"]
        redis.say(b"$1\r\nb\r\n$1\r\nc\r\n")

    async with line_to(play) as (line, _):
        unsent, sent, last = map(line.ask, (b"a", b"b", b"c"))
        unsent.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        sent.cancel()
        assert await last == b"c"


async def test_a_connection_that_is_lost_in_the_middle_fails_what_is_left() -> None:
    async def play(redis: Script) -> None:
        await redis.asked(3)
        redis.say(b"+OK\r\n$1\r\n1\r\n$1\r\n")
        await asyncio.sleep(0.005)
        redis.leave()

    async with line_to(play) as (line, failures):
        line.write(lambda: set_command(b"k", b"v", 9), 1)
        futures = list(map(line.ask, (b"a", b"b", b"c")))
        assert await futures[0] == b"1"
        await line.ended
        assert line.write(lambda: set_command(b"k", b"v", 9), 1) is False
        for future in (*futures[1:], line.ask(b"d")):
            with pytest.raises(CacheBroken):
                await future
        assert failures == []  # that one was kept


async def test_answers_of_which_nothing_was_heard_count_as_failed() -> None:
    async def play(redis: Script) -> None:
        await redis.until(set_command(b"k", b"v", 9))
        redis.leave()

    async with line_to(play) as (line, failures):
        line.write(lambda: set_command(b"k", b"v", 9), 1)
        await asyncio.wait_for(line.drain(), 30)
        assert len(failures) == 1
        await line.drain()


@pytest.mark.parametrize("said", [b":1\r\n", b"HTTP/1.1 400 Bad\r\n", b"$-1\r\n$-1\r\n", b"$-1\r\n$1\r\n"])
async def test_a_line_that_says_what_was_not_asked_is_ended(said: bytes) -> None:
    async def play(redis: Script) -> None:
        await redis.asked(1)
        redis.say(said)
        await redis.is_left()

    async with line_to(play) as (line, _):
        future = line.ask(b"a")
        await asyncio.wait_for(line.ended, 30)
        assert await outcome(future) in {None, str(await line.ended)}


async def test_a_server_that_became_a_replica_is_left() -> None:
    async def play(redis: Script) -> None:
        await redis.until(set_command(b"k", b"v", 9))
        redis.say(b"-READONLY You can't write against a read only replica.\r\n")
        await redis.is_left()

    async with line_to(play) as (line, failures):
        line.write(lambda: set_command(b"k", b"v", 9), 1)
        assert "READONLY" in str(await asyncio.wait_for(line.ended, 30))
        assert len(failures) == 1


async def test_what_is_asked_before_it_is_open_waits_no_longer_than_anything_else() -> None:
    async def play(redis: Script) -> None:
        await redis.is_left()

    async with line_to(play, is_open=False, within_s=SHORT_S) as (line, failures):
        assert await outcome(line.ask(b"a")) == "no answer within 50 ms"
        assert await outcome(line.ask(b"b")) == "no answer within 50 ms"
        assert line.write(lambda: set_command(b"k", b"v", 9), 1)
        line.end(CacheBroken("refused"))
        assert list(map(str, failures)) == ["refused"]


async def test_what_waits_is_bounded_in_number_and_bytes() -> None:
    async def play(redis: Script) -> None:
        await redis.is_left()

    async with line_to(play, is_open=False) as (line, failures):
        assert all(line.write(lambda: b"", 1) for _ in range(WRITES_MAX))
        assert line.write(lambda: b"", 1) is False
        assert failures == []
    async with line_to(play, is_open=False) as (line, _):
        assert line.write(lambda: b"", WRITE_BYTES_MAX)
        assert line.write(lambda: b"", 1) is False


async def test_a_server_that_reads_slowly_gets_everything_that_there_was_room_for() -> None:
    command = set_command(b"k", b"v" * 60_000, 9)
    fits = WRITE_BYTES_MAX // len(command)
    reads = asyncio.Event()

    async def play(redis: Script) -> None:
        await reads.wait()
        await redis.exactly(fits * len(command))
        redis.say(b"+OK\r\n" * fits)
        await redis.is_left()

    async with line_to(play) as (line, failures):
        assert sum(line.write(lambda: command, len(command)) for _ in range(fits + 1)) == fits
        await asyncio.sleep(0.02)
        reads.set()
        await asyncio.wait_for(line.drain(), 30)
        assert failures == []
        assert line.write(lambda: command, len(command))
