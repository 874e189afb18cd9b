"""How is a call served without a layer between the edge and its socket?

uvicorn's protocol, which hands calls of the data plane straight to the edge: small ones, whole in a moment,
over plain HTTP/1.1. Whatever else there is (other paths, large or chunked bodies, `Expect`, upgrades, a
request behind one that is under way) takes uvicorn's own way through ASGI, and the edge serves it all the
same. ASGI's scope, its events and its queues cost 15 µs a request, as much as all that the gateway decides,
and one more coroutine and two copies for each chunk of a stream.

It leans on uvicorn 0.54.0's `HttpToolsProtocol`: `on_response_complete`, `_unset_keepalive_if_required`, and
what `shutdown` and `connection_lost` expect of `cycle`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.api.error_bodies import Headers
from gateway.api.wire import too_large
from gateway.client_connection import ClientConnection

BODY_BYTES_MAX: Final = 65_536
"""A larger body goes through uvicorn, which holds the client back until somebody has looked at its key."""
_SPECIAL: Final = frozenset({b"expect", b"upgrade", b"transfer-encoding"})
_CLOSE: Final = (b"connection", b"close")
_BODY: Final = frozenset({b"content-length", b"transfer-encoding"})


class _UpgradeWithBody(Exception):  # httptools carries it out of a callback and wraps it
    """Not served: nothing is upgraded here."""


class Serve(Protocol):
    """The edge."""

    def __call__(
        self, wire: DirectWire, method: str, path: str, *, headers: Headers
    ) -> Coroutine[Any, Any, None]:
        """Serve one request; the headers' names are in lower case."""


class _NobodyWaits:
    """What uvicorn's protocol wakes on a lost connection; here nobody waits for it."""

    def set(self) -> None:
        """Nothing to do."""


class DirectWire:
    """The way to one client, over its own transport. To uvicorn's protocol it is the cycle under way."""

    __slots__ = (
        "_head",
        "_is_watched",
        "_protocol",
        "body",
        "disconnected",
        "has_left",
        "headers",
        "keep_alive",
        "message_event",
        "path",
        "response_complete",
        "response_started",
        "task",
    )

    def __init__(self, protocol: DataPlaneProtocol, path: str, headers: Headers, *, keep_alive: bool) -> None:
        self._protocol = protocol
        self._head = b""
        self._is_watched = False
        self.task: asyncio.Task[None] | None = None
        """Serves it."""
        self.path = path
        self.headers = headers
        self.body = b""
        self.has_left = False
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False
        self.response_started = False
        self.message_event = _NOBODY

    # ------------------------------------------------------------------------------------- for the edge
    async def read_body(self, limit_bytes: int) -> bytes:
        """The request's whole body; it is there already."""
        if len(self.body) > limit_bytes:
            raise too_large(limit_bytes)
        return self.body

    def watch(self) -> None:
        """Cancel the task when the client leaves."""
        self._is_watched = True
        if self.disconnected:
            self.lost()

    def unwatch(self) -> None:
        """Cancel nobody any more."""
        self._is_watched = False

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send one whole answer: head and body in one write."""
        if self.disconnected:
            return
        self.response_started = True
        head = self._head_of(status, headers, b"content-length: %d\r\n\r\n" % len(body))
        self._protocol.transport.write(head + body)
        self._complete()

    async def begin(self, status: int, headers: Headers) -> None:
        """Begin an answer in parts; its head goes out with the first of them."""
        self.response_started = True
        self._head = self._head_of(status, headers, b"transfer-encoding: chunked\r\n\r\n")

    async def part(self, data: bytes) -> None:
        """Send a part; waits while the client reads more slowly than we write."""
        if not self.write(data):
            await self.drain()

    def write(self, data: bytes) -> bool:
        """Send a part at once; false: the client reads more slowly than we write, so `drain`."""
        if self.disconnected:
            return True
        framed = b"%x\r\n%b\r\n" % (len(data), data)
        if self._head:
            framed, self._head = self._head + framed, b""
        protocol = self._protocol
        protocol.transport.write(framed)
        return not protocol.flow.write_paused

    async def drain(self) -> None:
        """Wait until the client has caught up."""
        flow = self._protocol.flow
        if flow.write_paused and not self.disconnected:
            await flow.drain()

    async def end(self, data: bytes) -> None:
        """Send the last part, which may be empty."""
        if self.disconnected:
            return
        rest = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        self._protocol.transport.write(self._head + rest)
        self._complete()

    def _head_of(self, status: int, headers: Headers, last: bytes) -> bytes:
        if _CLOSE in headers:
            self.keep_alive = False
        elif not self.keep_alive:
            headers = [*headers, _CLOSE]
        lines = [b"%b: %b\r\n" % header for header in headers]
        head = b"".join([STATUS_LINE[status], *lines, last])
        # A value with a line end of its own would be a header, or an answer, of its author's choice.
        if head.count(b"\n") != len(lines) + 3 or head.count(b"\r") != len(lines) + 3:
            raise RuntimeError("a header with a line end in it")
        return head

    def _complete(self) -> None:
        self.response_complete = True
        if not self.keep_alive:
            self._protocol.transport.close()
        self._protocol.on_response_complete()

    # --------------------------------------------------------------------------------- for the protocol
    def lost(self) -> None:
        """The client has left."""
        self.disconnected = True
        if self._is_watched and self.task is not None:
            self._is_watched = False
            self.has_left = True
            self.task.cancel()


class DataPlaneProtocol(ClientConnection):
    """One client's connection."""

    def __init__(self, serve: Serve, paths: dict[bytes, str], **options: Any) -> None:
        """As uvicorn makes it.

        Args:
            serve: the edge.
            paths: which are served directly, as they stand in a request's first line.
            options: uvicorn's own, and the rule for clients.
        """
        super().__init__(**options)
        self._serve = serve
        self._paths = paths
        self._direct: DirectWire | None = None
        """The request that is being read or served without ASGI."""
        self._is_reading_direct = False
        self._served: RequestResponseCycle | None = None
        """Through ASGI; `cycle` may be one that waits behind it."""
        self._idle_since_s: float | None = None

    # ---------------------------------------------------------------------------- the parser's callbacks
    def on_message_begin(self) -> None:
        """Only what every request needs; ASGI's scope is made for those that take its way."""
        self.request_begins()
        self._idle_since_s = None
        self.url = b""
        self.headers = []
        self._is_reading_direct = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep it, unless it is a trailer: those are nobody's headers."""
        if self._is_in_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Which way does it take?"""
        self.head_is_whole()
        self._idle_since_s = None
        if self.parser.should_upgrade() and not _BODY.isdisjoint(dict(self.headers)):
            raise _UpgradeWithBody  # httptools would take the body for the next request
        path = self._paths.get(self.url)
        if path is not None and self._can_be_direct(dict(self.headers)):
            wire = DirectWire(self, path, self.headers, keep_alive=self.parser.should_keep_alive())
            self._direct = self.cycle = wire  # type: ignore[assignment]
            self._is_reading_direct = True
            return
        url, headers = self.url, self.headers
        HttpToolsProtocol.on_message_begin(self)
        self.url = url
        self.headers.extend(headers)
        self.expect_100_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in headers
        )
        super().on_headers_complete()

    def _can_be_direct(self, headers: dict[bytes, bytes]) -> bool:
        length = headers.get(b"content-length")
        return (
            length is not None
            and len(length) < 6  # noqa: PLR2004 - digits
            and length.isdigit()
            and int(length) <= BODY_BYTES_MAX
            and _SPECIAL.isdisjoint(headers)
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused  # uvicorn waits for the client to read what it has
        )

    def on_body(self, body: bytes) -> None:
        """Keep a piece."""
        self.body_comes()
        if not self._is_reading_direct:
            super().on_body(body)
        elif self._direct is not None:
            self._direct.body += body

    def on_message_complete(self) -> None:
        """Serve it."""
        self.request_is_whole()
        if not self._is_reading_direct:
            super().on_message_complete()
            return
        self._is_reading_direct = False
        if self._direct is not None:
            task = self._direct.task = self.loop.create_task(self._run(self._direct))
            self.tasks.add(task)

    async def _run(self, wire: DirectWire) -> None:
        try:
            await self._serve(wire, "POST", wire.path, headers=wire.headers)
        finally:
            if wire.task is not None:
                self.tasks.discard(wire.task)
            if not (wire.response_complete or wire.disconnected):
                self.transport.close()  # an answer that was cut must not look like one that is complete

    # ------------------------------------------------------------------------------- the connection's end
    def connection_lost(self, exc: Exception | None) -> None:
        """Stop what is under way for a client that left."""
        if self._direct is not None and not self._direct.response_complete:
            self._direct.lost()
        if self._served is not None and not self._served.response_complete:
            self._served.disconnected = True
            self._served.message_event.set()
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        super().connection_lost(exc)

    # ----------------------------------------------------------------------------------- between requests
    # One timer per connection that looks when it is due, instead of one for every pause.
    def _unset_keepalive_if_required(self) -> None:
        """A request's beginning does; line ends between two do not."""

    def on_response_complete(self) -> None:
        """Read on, and let an idle client go after a while."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self.close_soon()
            return
        self._idle_since_s = None
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_again_in(self.timeout_keep_alive)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._served = cycle
        super()._start_asgi_task(cycle, app)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it has been idle for so long."""
        self.timeout_keep_alive_task = None
        if self._idle_since_s is None or self.transport.is_closing():
            return  # busy: the next answer sets the next timer
        left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._look_again_in(left_s)
        else:
            self.close_soon()

    def _look_again_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)


_NOBODY: Final = _NobodyWaits()
