"""How do many requests share one connection to Redis, at the price of a few?

What is asked within one turn of the event loop goes out in one piece, together with the answers that are to
be kept; Redis replies in the order in which it was asked, so that a reply finds its question by counting.
Answers to be kept go first: who asks again finds what this process just kept. There is one timer for all.

**A late reply answers nobody else.** A look-up that has waited too long is told so; its place in the order
stays until the reply comes or the connection ends. A connection whose replies stay away for `ANSWER_S`, or
that says what is no reply, is ended: everything that waits on it fails, and nothing is ever sent twice.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import cast

from gateway.cache.resp import (
    INCOMPLETE,
    MISSING,
    OK,
    Incomplete,
    NotRedis,
    Refusal,
    Reply,
    ReplyReader,
    get_command,
)
from gateway.cache.storage import CacheBroken, Failed

ANSWER_S = 2.0
"""A connection on which nothing is answered for so long is ended."""
WRITE_DELAY_S = 0.005
"""So long may an answer wait for a look-up to travel with."""
WRITES_MAX = 1_000
"""Answers that may wait to be sent or for Redis' word on them."""
WRITE_BYTES_MAX = 16_000_000
"""Bytes of them."""
BATCH_BYTES_MAX = 256_000
"""What is written at once before look-ups: more would hold them up."""
GRACE_S = 0.001
"""A reply may lie in the socket while the event loop was busy: it is read before a look-up is called late."""
_READ_ONLY = "READONLY"


class _Batch:
    """What is sent at once and is not wholly answered."""

    __slots__ = (
        "asked",
        "began_s",
        "is_late",
        "is_suspect",
        "names",
        "replies",
        "usual",
        "write_bytes",
        "writes",
    )

    def __init__(self, began_s: float) -> None:
        self.began_s = began_s
        self.names: list[bytes] = []
        self.asked: list[asyncio.Future[bytes | None]] = []
        self.writes = 0
        self.write_bytes = 0
        self.usual = b""
        """How all of it is answered nearly always: everything was kept, nothing was found."""
        self.replies = 0
        self.is_suspect = False
        self.is_late = False

    def drop_gone(self) -> None:
        """Leave out look-ups whose request has gone."""
        if any(future.done() for future in self.asked):
            left = [
                (name, future)
                for name, future in zip(self.names, self.asked, strict=True)
                if not future.done()
            ]
            self.names, self.asked = [name for name, _ in left], [future for _, future in left]

    def judge(self, now_s: float, within_s: float) -> float:
        """Tell look-ups that are late, at the second look; when to look again (infinite: not for them)."""
        due_s = self.began_s + within_s
        if self.is_late or not self.asked:
            return math.inf
        if now_s < due_s:
            return due_s
        if not self.is_suspect:
            self.is_suspect = True
            return now_s + GRACE_S
        self.is_late = True
        self.fail(CacheBroken(f"no answer within {within_s * 1000:g} ms"))
        return math.inf

    def fail(self, error: CacheBroken) -> None:
        """No look-up of these is answered."""
        for future in self.asked:
            if not future.done():
                future.set_exception(error)


class RedisLine(asyncio.Protocol):
    """One connection, from before it is open until it has ended; then it is of no further use."""

    def __init__(self, loop: asyncio.AbstractEventLoop, failed: Failed, *, within_s: float) -> None:
        """Not connected: what is asked waits for the connection.

        Args:
            loop: the running one.
            failed: is told of each answer that could not be kept.
            within_s: the longest that a look-up takes.
        """
        self._loop = loop
        self._failed = failed
        self._within_s = within_s
        self._transport: asyncio.Transport | None = None
        self._is_full = False
        self._reader = ReplyReader()
        self._batches: deque[_Batch] = deque()
        self._next: _Batch | None = None
        """Look-ups that are to be sent."""
        self._to_write: deque[tuple[Callable[[], bytes], int]] = deque()
        self._write_count = 0
        self._write_bytes = 0
        self._will_send = False
        self._later: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None
        self.ended: asyncio.Future[Exception] = loop.create_future()
        """Why it ended."""

    # ------------------------------------------------------------------------------------------- asking
    def ask(self, name: bytes) -> asyncio.Future[bytes | None]:
        """What lies under the name; the future fails with CacheBroken, within the time at the latest."""
        future: asyncio.Future[bytes | None] = self._loop.create_future()
        if self.ended.done():
            future.set_exception(CacheBroken("the connection to Redis has ended"))
            return future
        batch = self._next
        if batch is None:
            batch = self._next = _Batch(self._loop.time())
            self._watch()
            self._will_send = True
            self._loop.call_soon(self._send)
        batch.names.append(name)
        batch.asked.append(future)
        return future

    def write(self, command: Callable[[], bytes], size_bytes: int) -> bool:
        """Send a SET soon; its failure is told to `failed`.

        Args:
            command: makes it, when it is sent: sealing an answer does not hold up the answer.
            size_bytes: about its length.

        Returns:
            Whether there is room for it.
        """
        if (
            self.ended.done()
            or self._write_count >= WRITES_MAX
            or self._write_bytes + size_bytes > WRITE_BYTES_MAX
        ):
            return False
        self._write_count += 1
        self._write_bytes += size_bytes
        self._to_write.append((command, size_bytes))
        if self._later is None and not self._will_send:
            self._later = self._loop.call_later(WRITE_DELAY_S, self._send_later)
        return True

    async def drain(self) -> None:
        """Wait until Redis has answered everything that was written, or the connection has ended."""
        if self._write_count and not self.ended.done():
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    def _send_later(self) -> None:
        self._later = None
        self._send()

    def _send(self) -> None:
        self._will_send = False
        transport = self._transport
        if transport is None or self._is_full or self.ended.done():
            return
        batch, self._next = self._next or _Batch(self._loop.time()), None
        pieces: list[bytes] = []
        to_write = self._to_write
        while to_write and batch.write_bytes < BATCH_BYTES_MAX:
            command, size_bytes = to_write.popleft()
            pieces.append(command())
            batch.write_bytes += size_bytes
        batch.writes = len(pieces)
        batch.drop_gone()
        pieces += map(get_command, batch.names)
        if to_write and self._later is None:
            self._later = self._loop.call_later(WRITE_DELAY_S, self._send_later)
        if pieces:
            batch.usual = OK * batch.writes + MISSING * len(batch.asked)
            self._batches.append(batch)
            self._watch()
            transport.write(b"".join(pieces))

    # ------------------------------------------------------------------------------------------ replies
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open, and its greetings are over: what waited goes out."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._send()

    def data_received(self, data: bytes) -> None:
        """Some replies, or parts of them."""
        batches, position = self._batches, 0
        if self._reader.is_empty:
            while batches and not batches[0].replies and data.startswith(batches[0].usual, position):
                position += len(batches[0].usual)
                batch = batches.popleft()
                for future in batch.asked:
                    if not future.done():
                        future.set_result(None)
                self._is_answered(batch)
            if position == len(data):
                return
        self._reader.feed(data[position:] if position else data)
        try:
            while batches and (reply := self._reader.next()) is not INCOMPLETE:
                self._take(batches[0], reply)
        except NotRedis as error:
            self.end(CacheBroken(f"this is not how Redis answers: {error}"))
        if not batches and not self._reader.is_empty:
            self.end(CacheBroken("Redis said something that it was not asked"))

    def _take(self, batch: _Batch, reply: Reply | Incomplete) -> None:
        number = batch.replies
        batch.replies += 1
        error = CacheBroken(str(reply)) if isinstance(reply, Refusal) else None
        if number < batch.writes:
            if error is not None:
                self._failed(error)
        else:
            future = batch.asked[number - batch.writes]
            if future.done():
                pass  # it is late, or its request has gone
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(reply if isinstance(reply, bytes) else None)
        if batch.replies == batch.writes + len(batch.asked):
            self._batches.popleft()
            self._is_answered(batch)
        if error is not None and str(error).startswith(_READ_ONLY):
            self.end(error)  # a replica now: its name may lead to the new master

    def _is_answered(self, batch: _Batch) -> None:
        self._write_count -= batch.writes
        self._write_bytes -= batch.write_bytes
        if not self._write_count and self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    def pause_writing(self) -> None:
        """Redis or the network does not keep up: what is asked waits here."""
        self._is_full = True

    def resume_writing(self) -> None:
        """It does again."""
        self._is_full = False
        self._send()

    # ---------------------------------------------------------------------------------------- the end
    def _watch(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._within_s, self._look)

    def _look(self) -> None:
        """Tell look-ups that have waited too long; end a connection that is silent."""
        self._timer = None
        now_s = self._loop.time()
        if self._batches and now_s - self._batches[0].began_s >= ANSWER_S:
            self.end(CacheBroken(f"Redis has not answered for {ANSWER_S:g} s"))
            return
        again_s = now_s + self._within_s  # no later: what is asked meanwhile relies on it
        for batch in self._batches:
            again_s = min(again_s, batch.judge(now_s, self._within_s))
        if self._next is not None:
            again_s = min(again_s, self._next.judge(now_s, self._within_s))
            if self._next.is_late:
                self._next = None
        if self._batches or self._next is not None:
            self._timer = self._loop.call_later(max(GRACE_S, again_s - now_s), self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self.end(CacheBroken(f"Redis closed the connection ({exc or 'at its end'})"))

    def end(self, error: CacheBroken) -> None:
        """Everything that waits fails; twice does no harm."""
        if self.ended.done():
            return
        self.ended.set_result(error)
        for handle in (self._timer, self._later):
            if handle is not None:
                handle.cancel()
        if self._transport is not None:
            self._transport.abort()
        for batch in (*self._batches, *(() if self._next is None else (self._next,))):
            batch.fail(error)
        # Those of a batch that is answered in part were told of where they failed; the others are unknown.
        unsure = sum(max(0, batch.writes - batch.replies) for batch in self._batches) + len(self._to_write)
        self._batches.clear()
        self._next = None
        self._to_write.clear()
        for _ in range(unsure):
            self._failed(error)
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None
