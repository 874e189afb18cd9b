"""How is one request sent over one connection, and its answer read as it arrives?

A connection does one exchange at a time and knows nothing of pools; `client.py` decides which connection
is used, and whether it may be used again. It bounds what it holds: the head of an answer, and the unread part
of a body (it stops reading the socket until the caller has caught up). It does not time anything, follow
redirects, decompress, or pipeline.

Whoever stops waiting stops the engine: a wait that is cancelled aborts the transport, so that the server
sees the end of the connection at once and does not generate for nobody.

Parsing is llhttp's (httptools 0.9.0), with its strict defaults; three things are ours because httptools
leaves them open: the size of a head, the end of a message that only the end of the connection ends
(it does not offer llhttp_finish), and bytes after a message.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Final, cast

import httptools

from gateway.errors import UpstreamError, UpstreamProtocolError, UpstreamUnavailable
from gateway.upstream.patience import Patience

UNREACHABLE: Final = "The model could not be reached."
BROKEN: Final = "The connection to the model broke before its answer was complete."
UNREADABLE: Final = "The model's answer could not be read."

UNREAD_BYTES_MAX: Final = 1 << 20
"""More than this unread, and the socket is left alone until the caller has read it."""
ONE_WRITE_BYTES_MAX: Final = 64 << 10
"""Up to here a copy of the body behind the head is cheaper than a second system call."""

_SWITCHING_PROTOCOLS: Final = 101
_INFORMATIONAL_FIRST, _FINAL_FIRST = 100, 200
_BODILESS: Final = (204, 304)
_LENGTHS_OF_INTEREST: Final = (len(b"content-length"), len(b"transfer-encoding"))

Sink = Callable[[bytes], bool]
"""Takes a piece of a body; true wakes whoever waits."""


def read_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Names in lower case; repeated ones are joined by a comma."""
    headers: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


class _Unreadable(Exception):  # never leaves this module; llhttp carries it out of a callback
    """The answer breaks a rule of ours."""


class Connection(asyncio.Protocol):
    """One connection to one server."""

    __slots__ = (
        "_address",
        "_after_path",
        "_before_path",
        "_bytes_since_body",
        "_head_bytes_max",
        "_header_bytes",
        "_is_read_to_eof",
        "_is_reading_paused",
        "_is_writing_paused",
        "_loop",
        "_on_gone",
        "_parser",
        "_raw_headers",
        "_transport",
        "_unread_bytes",
        "_waiter",
        "failure",
        "has_received",
        "idle_since_s",
        "is_closed",
        "is_head_complete",
        "is_kept_alive",
        "is_under_way",
        "patience",
        "pieces",
        "sink",
        "status",
    )

    def __init__(
        self, address: str, base_path: str, *, head_bytes_max: int, on_gone: Callable[[Connection], None]
    ) -> None:
        """Prepare for a transport.

        Args:
            address: host:port, for the Host header and the log.
            base_path: stands before the path of every request.
            head_bytes_max: limit for the head of an answer, 1xx answers before it included.
            on_gone: called once, when the transport is closed.
        """
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._before_path = f"POST {base_path}".encode("ascii")
        self._after_path = f" HTTP/1.1\r\nhost: {address}\r\ncontent-length: ".encode("ascii")
        self._head_bytes_max = head_bytes_max
        self._on_gone = on_gone
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_reading_paused = False
        self._is_writing_paused = False
        self._is_read_to_eof = False
        self._unread_bytes = 0
        self._header_bytes = 0
        self._bytes_since_body = 0
        self.pieces: list[bytes] = []
        self.status = 0
        self._raw_headers: list[tuple[bytes, bytes]] = []
        self.patience: Patience | None = None
        """How long the exchange under way may take; the client looks at it."""
        self.sink: Sink | None = None
        """Takes the body as it arrives, instead of `pieces`."""
        self.failure: UpstreamError | None = None
        self.idle_since_s = 0.0
        self.has_received = False
        self.is_head_complete = False
        self.is_kept_alive = False
        self.is_under_way = False
        self.is_closed = False

    # ---------------------------------------------------------------------------------------- the request
    async def send(self, path: str, headers: bytes, body: bytes) -> None:
        """Send a request; return when the head of its answer is there.

        Raises:
            UpstreamUnavailable: the connection broke before that.
            UpstreamProtocolError: what arrived is not HTTP, or its head is too large.
        """
        self._begin()
        transport = self._transport
        if transport is None:
            transport = self._open_transport()
        path_bytes = path.encode("ascii")
        if len(body) <= ONE_WRITE_BYTES_MAX:
            transport.write(
                b"%b%b%b%d\r\n%b\r\n%b"
                % (self._before_path, path_bytes, self._after_path, len(body), headers, body)
            )
        else:
            transport.write(
                b"%b%b%b%d\r\n%b\r\n" % (self._before_path, path_bytes, self._after_path, len(body), headers)
            )
            await self._write_slowly(transport, body)
        while not self.is_head_complete:
            if self.failure is not None:
                raise self.failure
            await self.wait()

    def _begin(self) -> None:
        self.status = 0
        # A new one: the previous answer may still be in somebody's hands.
        self._raw_headers = []
        self.sink = None
        self._unread_bytes = 0
        self._header_bytes = 0
        self._bytes_since_body = 0
        self.has_received = False
        self.is_kept_alive = False
        self.is_head_complete = False
        self.is_under_way = True

    async def _write_slowly(self, transport: asyncio.Transport, body: bytes) -> None:
        view = memoryview(body)
        for start in range(0, len(body), ONE_WRITE_BYTES_MAX):
            # Once an answer begins, the rest goes out without waiting: the server might wait for it.
            while self._is_writing_paused and self.is_under_way and not self.is_head_complete:
                await self.wait()
            if not self.is_under_way or transport.is_closing():
                # Answered or broken in the middle of the request: what was cut short is not used again.
                self.is_kept_alive = False
                return
            transport.write(view[start : start + ONE_WRITE_BYTES_MAX])

    # ----------------------------------------------------------------------------------------- the answer
    async def wait(self) -> None:
        """Wait until something has changed; whoever is cancelled here ends the connection."""
        waiter = self._waiter = self._loop.create_future()
        is_woken = False
        try:
            await waiter
            is_woken = True
        finally:
            self._waiter = None
            if not is_woken:
                self.abort("the caller stopped waiting")

    def take(self) -> bytes:
        """The unread part of the body, as one piece."""
        data = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        self.pieces.clear()
        self._unread_bytes = 0
        if self._is_reading_paused:
            self._is_reading_paused = False
            transport = self._open_transport()
            if not transport.is_closing():
                transport.resume_reading()
        return data

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """The answer's headers as they came."""
        return self._raw_headers

    def expire(self, now_s: float) -> None:
        """Fail if the exchange under way has taken too long."""
        patience = self.patience
        if patience is None or not self.is_under_way or patience.deadline_s > now_s:
            return
        if patience.is_renewed and self._waiter is None:
            patience.renew()  # the client reads slowly: what the engine sent lies here
            if patience.deadline_s > now_s:
                return
        self._fail(patience.error())
        self.abort("took too long")

    def is_reusable(self) -> bool:
        """Whether the exchange ended so that another may follow."""
        return (
            self.is_kept_alive
            and not self.is_under_way
            and not self.is_closed
            and not self._is_writing_paused
            and self.failure is None
        )

    def make_idle(self, now_s: float) -> None:
        """Drop what is left of the last exchange."""
        self.pieces.clear()
        self.patience = None
        self.sink = None
        self.idle_since_s = now_s
        if self._is_reading_paused:
            self._is_reading_paused = False
            self._open_transport().resume_reading()

    def is_open(self) -> bool:
        """Whether a request may be written; a transport can be closing before it says so."""
        return not self.is_closed and not self._open_transport().is_closing()

    def abort(self, reason: str) -> None:
        """Close at once, throwing away what is buffered; twice does no harm."""
        if self.is_closed:
            return
        self.is_closed = True
        self._fail(UpstreamUnavailable(BROKEN, operator_detail=f"{self._address}: {reason}"))
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, failure: UpstreamError) -> None:
        if self.is_under_way:
            self.is_under_way = False
            self.failure = failure
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _open_transport(self) -> asyncio.Transport:
        if self._transport is None:
            raise RuntimeError("the connection was not made yet")
        return self._transport

    # -------------------------------------------------------------------------------- asyncio's callbacks
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        # A cast, because uvloop's transports only look like asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        found = transport.get_extra_info("socket")
        if found is not None:
            # Both loops do this by themselves; 40 ms per request are too much to leave to a default.
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Parse, then wake whoever waits."""
        if not self.is_under_way:
            # Bytes that nobody asked for: what would follow them cannot be told from an answer.
            self.abort("bytes outside an answer")
            return
        self.has_received = True
        unread_before = self._unread_bytes
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._end_unreadable(str(error.__context__ or error))
            return
        if self._unread_bytes != unread_before:
            self._bytes_since_body = 0
            if self._unread_bytes > UNREAD_BYTES_MAX and self.is_under_way and not self._is_reading_paused:
                self._is_reading_paused = True
                self._open_transport().pause_reading()
        elif self.is_under_way:
            # Heads, trailers and chunk extensions: httptools keeps what is not complete, without a limit.
            self._bytes_since_body += len(data)
            if self._bytes_since_body > self._head_bytes_max:
                self._end_unreadable(f"more than {self._head_bytes_max} bytes of headers")
                return
        if self.sink is not None and self.pieces:
            if self.sink(self.take()) or not self.is_under_way:
                self._wake()
        elif self.is_head_complete:
            self._wake()

    def eof_received(self) -> None:
        """End the message if nothing else ends it; the transport then closes itself."""
        if self.is_under_way and self.is_head_complete and self._is_read_to_eof:
            self.is_under_way = False
        self._lose("closed by the server")

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits, and the pool."""
        self._lose(str(exc) if exc is not None else "closed")
        # The parser holds our bound methods: without this, each connection is a cycle for the collector.
        del self._parser
        self._on_gone(self)

    def pause_writing(self) -> None:
        """The server reads more slowly than we write."""
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._is_writing_paused = False
        self._wake()

    def _lose(self, reason: str) -> None:
        moment = "before the answer was complete" if self.has_received else "before an answer"
        caller_detail = BROKEN if self.has_received else UNREACHABLE
        self._fail(UpstreamUnavailable(caller_detail, operator_detail=f"{self._address}: {reason} {moment}"))
        self.abort(reason)

    def _end_unreadable(self, reason: str) -> None:
        # After a complete message this is garbage behind it: the answer stands, the connection does not.
        self._fail(UpstreamProtocolError(UNREADABLE, operator_detail=f"{self._address}: {reason}"))
        self.abort(reason)

    # ------------------------------------------------------------------------------- the parser's callbacks
    def on_message_begin(self) -> None:
        """Refuse a second answer to one request."""
        if not self.is_under_way:
            raise _Unreadable("bytes after the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header of the head; of a trailer only the size matters."""
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > self._head_bytes_max:
            raise _Unreadable(f"more than {self._head_bytes_max} bytes of headers")
        if self.is_head_complete:
            return
        self._raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Settle what ends the message."""
        status = self._parser.get_status_code()
        if status < _FINAL_FIRST:
            if status < _INFORMATIONAL_FIRST or status == _SWITCHING_PROTOCOLS:
                raise _Unreadable(f"status {status}")
            return
        is_chunked = has_length = False
        for name, value in self._raw_headers:
            if len(name) not in _LENGTHS_OF_INTEREST:
                continue
            key = name.lower()
            if key == b"content-length":
                has_length = True
            elif key == b"transfer-encoding":
                if is_chunked or value.lower() != b"chunked":
                    raise _Unreadable(f"transfer-encoding {value.decode('latin-1')!r}")
                is_chunked = True
        self._is_read_to_eof = not (is_chunked or has_length) and status not in _BODILESS
        self.status = status
        self.is_kept_alive = self._parser.should_keep_alive()
        self.is_head_complete = True

    def on_body(self, body: bytes) -> None:
        """Keep a piece."""
        self.pieces.append(body)
        self._unread_bytes += len(body)

    def on_message_complete(self) -> None:
        """End the exchange, unless the message was a 1xx before the answer."""
        if self.is_head_complete:
            self.is_under_way = False
        else:
            self._raw_headers = []
