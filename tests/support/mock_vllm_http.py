"""How do bytes become requests, and answers become bytes, as uvicorn does it for vLLM?

One asyncio.Protocol per connection: keep-alive, pipelining, back-pressure, and notice of a client that
leaves, which cancels the request being served. `StreamReply` writes chunked bodies; splitting and
coalescing happen there.
"""

import asyncio
import email.utils
import http
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import httptools

Headers = list[tuple[str, str]]
VARY: Final = ("vary", "Origin")
"""vLLM's CORS middleware says it on every answer."""
_HEAD_PIECES: Final = 8
_UNSENT_MAX: Final = 256
"""Pieces held for one system call."""


@dataclass(slots=True)
class Request:
    """A request that has arrived whole."""

    method: str = ""
    target: str = ""
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    is_kept_alive: bool = True

    def header(self, name: str) -> str | None:
        """The first header of this name (lower case)."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


def head(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    """Status line and headers, in uvicorn's order."""
    lines = [f"HTTP/1.1 {status} {_phrase(status)}", _date_line(int(time.monotonic())), "server: uvicorn"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@lru_cache(maxsize=64)
def _phrase(status: int) -> str:
    return http.HTTPStatus(status).phrase


@lru_cache(maxsize=2)
def _date_line(_second: int) -> str:
    """Built once per second, as uvicorn does."""
    return f"date: {email.utils.formatdate(usegmt=True)}"


class Connection(asyncio.Protocol):
    """One connection and the requests on it, served one after the other."""

    def __init__(
        self,
        serve: Callable[[Request, "Connection"], Awaitable[None]],
        *,
        admit: Callable[["Connection"], bool],
        leave: Callable[["Connection"], None],
        keep_alive_s: float,
    ) -> None:
        self._serve = serve
        self._admit = admit
        self._leave = leave
        self._keep_alive_s = keep_alive_s
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._arriving = Request()
        self._waiting: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._unsent: list[bytes] = []
        self._may_write = asyncio.Event()
        self._may_write.set()

    # --------------------------------------------------------------------------------- asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("listens on stream sockets only")
        self._transport = transport
        if not self._admit(self):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio names it
        self._leave(self)
        self._stop_idling()
        self._may_write.set()
        self._transport = None
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._stop_idling()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.write(head(400, [("content-type", "text/plain; charset=utf-8"), ("connection", "close")]))
            self.write(b"Invalid HTTP request received.")
            self.close()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    # ------------------------------------------------------------------------------- httptools callbacks
    def on_message_begin(self) -> None:
        """A request begins."""
        self._arriving = Request()

    def on_url(self, url: bytes) -> None:
        """A part of its target."""
        self._arriving.target += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; names become lower case."""
        self._arriving.headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        """All headers are there; curl waits for the 100 before it sends a long body."""
        if (self._arriving.header("expect") or "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self._arriving.body += body

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._arriving.method = self._parser.get_method().decode("ascii")
        self._arriving.is_kept_alive = self._parser.should_keep_alive()
        self._waiting.append(self._arriving)
        self._serve_next()

    # ------------------------------------------------------------------------------------------ serving
    def _serve_next(self) -> None:
        if self._task is None and self._waiting and self._transport is not None:
            request = self._waiting.popleft()
            self._task = self._loop.create_task(self._serve_one(request))
            self._task.add_done_callback(self._ended)

    async def _serve_one(self, request: Request) -> None:
        await self._serve(request, self)
        if not request.is_kept_alive:
            self.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler({"message": "a request failed in the mock", "exception": error})
            self.close()
        if self._waiting:
            self._serve_next()
        elif self._transport is not None:
            self._idle = self._loop.call_later(self._keep_alive_s, self.close)

    def _stop_idling(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    # ------------------------------------------------------------------------------------------ writing
    def write(self, data: bytes) -> None:
        """Send soon; what is written without a pause between leaves in one system call."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(data)

    def _flush(self) -> None:
        data, self._unsent = b"".join(self._unsent), []
        # Nothing happens once the client is gone.
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait while the client reads too slowly."""
        if len(self._unsent) >= _UNSENT_MAX:
            self._flush()
        if not self._may_write.is_set():
            await self._may_write.wait()

    def close(self) -> None:
        """Close after what was written."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    async def write_head(self, data: bytes, over_s: float | None) -> None:
        """Write the response's head, at once or in pieces over some seconds."""
        if not over_s:
            self.write(data)
            return
        size = max(1, len(data) // _HEAD_PIECES)
        for start in range(0, len(data), size):
            self.write(data[start : start + size])
            await asyncio.sleep(over_s / _HEAD_PIECES)

    def reply(
        self, status: int, body: bytes, content_type: str = "application/json", more: Headers | None = None
    ) -> None:
        """A whole answer."""
        headers = [*(more or []), ("content-length", str(len(body)))]
        if body:
            headers.append(("content-type", content_type))
        headers.append(VARY)
        self.write(head(status, headers) + body)


class StreamReply:
    """A chunked body, cut at event borders or, when told so, elsewhere."""

    def __init__(self, connection: Connection, *, split: int = 0, coalesce: int = 0) -> None:
        self._connection = connection
        self._split = split
        self._coalesce = coalesce
        self._held = b""
        self._events = 0

    async def send(self, data: bytes) -> None:
        """One event."""
        if self._split:
            self._held += data
            while len(self._held) >= self._split:
                await self._piece(self._held[: self._split])
                self._held = self._held[self._split :]
            return
        if not self._coalesce:
            await self._piece(data)
            return
        self._held += data
        self._events += 1
        if self._events >= self._coalesce:
            await self.flush()

    async def flush(self) -> None:
        """Send what is held back."""
        held, self._held, self._events = self._held, b"", 0
        if held:
            await self._piece(held)

    async def _piece(self, data: bytes) -> None:
        self._connection.write(b"%x\r\n%s\r\n" % (len(data), data))
        if self._split or self._coalesce:
            # Let the piece leave as a segment of its own.
            await asyncio.sleep(0)
        await self._connection.drain()

    async def end(self) -> None:
        """The last chunk."""
        await self.flush()
        self._connection.write(b"0\r\n\r\n")
