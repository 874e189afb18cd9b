"""Who carries a request to a replica, and what becomes of the connection afterwards?

`UpstreamClient.post` sends over the connection that was used last, or a new one, and hands back the answer
once its head is there; `UpstreamResponse.close` gives the connection back, or aborts it when the answer is
not complete. Whatever is cancelled on the way aborts its connection.

It does not retry (but for the race with a server that closes an idle connection), follow redirects,
decompress, use proxies, speak HTTP/2: attempts, their deadlines and the limit of requests in flight are its
caller's. It ends what is beyond its deadline.

Why not a library: cancelling a request whose head has not arrived must close its connection, or vLLM goes
on generating for nobody. pyreqwest 0.15.1 spawns the work and drops the JoinHandle (runtime.rs), which
detaches it, and costs more; aiohttp costs 60 µs of CPU per request more, httpx 1.4 ms (PERFORMANCE, 2).
"""

from __future__ import annotations

import asyncio
import functools
import math
import ssl
import time
from typing import Final, Self
from urllib.parse import urlsplit

import msgspec

from gateway.errors import UpstreamProtocolError, UpstreamTimeout, UpstreamUnavailable
from gateway.upstream.connection import BROKEN, UNREACHABLE, UNREADABLE, Connection, Sink, read_headers
from gateway.upstream.patience import Patience

_DEFAULT_PORT: Final = {"http": 80, "https": 443}
_SHUTTING_DOWN: Final = "the gateway is shutting down"

_TIMER_GRAIN_S: Final = 0.001
STALE_WITHIN_S = 1.0
"""A server that closes an idle connection just as a request arrives shows it within milliseconds."""


class Origin(msgspec.Struct, frozen=True, cache_hash=True):
    """Where a replica listens."""

    host: str
    """Name or address; IPv6 without brackets."""
    port: int
    is_tls: bool
    base_path: str
    """Stands before every path: empty, or /prefix without a slash at its end."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read `http(s)://host[:port][/path]`.

        Raises:
            ValueError: it is anything else; the message says what to write.
        """
        advice = "write http://host:port or https://host:port/path"
        # Before urlsplit, which drops tabs and line ends without a word.
        if not url.isascii() or any(character <= " " or character == "\x7f" for character in url):
            raise ValueError(f"{url!r} holds a space or a character outside ASCII: {advice}")
        if "@" in url:
            # Not shown: it may hold a password.
            raise ValueError(f"a replica's URL must not hold a user name or a password: {advice}")
        try:
            parts = urlsplit(url)
            port = parts.port
            host = parts.hostname or ""
            # As the resolver will: it refuses empty and overlong labels.
            host.encode("idna")
        except ValueError as error:
            raise ValueError(f"{url!r} has no usable host and port ({error}): {advice}") from None
        if parts.scheme not in _DEFAULT_PORT:
            raise ValueError(f"{url!r} does not begin with http:// or https://: {advice}")
        if parts.query or parts.fragment or url.endswith(("?", "#")):
            raise ValueError(f"{url!r} must end with its path, without ? or #: {advice}")
        if not host or port == 0 or "%" in host:
            raise ValueError(f"{url!r} has no usable host and port: {advice}")
        return cls(
            host=host,
            port=_DEFAULT_PORT[parts.scheme] if port is None else port,
            is_tls=parts.scheme == "https",
            base_path=parts.path.rstrip("/"),
        )

    @property
    def address(self) -> str:
        """host:port, as in a Host header."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UpstreamResponse:
    """An answer whose head has arrived. Whoever holds it closes it."""

    __slots__ = ("_client", "_connection", "_origin", "_raw_headers", "status")

    def __init__(self, client: UpstreamClient, origin: Origin, connection: Connection) -> None:
        self._client = client
        self._origin = origin
        self._connection: Connection | None = connection
        self.status = connection.status
        self._raw_headers = connection.raw_headers

    @property
    def headers(self) -> dict[str, str]:
        """Names in lower case; repeated ones are joined by a comma."""
        return read_headers(self._raw_headers)

    def allow(self, patience: Patience) -> None:
        """From now on the rest may take so long; before, it was what the request was sent with."""
        connection = self._connection
        if connection is not None:
            connection.patience = patience
            self._client.look_at(patience)

    async def pour(self, sink: Sink) -> None:
        """Have each piece of the body go to `sink` as it arrives; return when `sink` says so.

        Raises:
            UpstreamUnavailable: the connection broke before the message was complete.
            UpstreamProtocolError: the message cannot be read any further.
        """
        connection = self._connection
        if connection is None:
            raise self._closed()
        connection.sink = sink
        try:
            if connection.pieces and sink(connection.take()):
                return
            if connection.is_under_way:
                await connection.wait()
        finally:
            connection.sink = None
        if connection.failure is not None:
            raise connection.failure

    async def read(self) -> bytes:
        """The next part of the body, as much as has arrived; b"" once the message is complete.

        Raises:
            UpstreamUnavailable: the connection broke before the message was complete.
            UpstreamProtocolError: the message cannot be read any further.
        """
        while True:
            # Looked at anew after each wait: close() may have been called meanwhile.
            connection = self._connection
            if connection is None:
                raise self._closed()
            if connection.pieces:
                return connection.take()
            if connection.failure is not None:
                raise connection.failure
            if not connection.is_under_way:
                return b""
            await connection.wait()

    @property
    def is_complete(self) -> bool:
        """Nothing more comes, and all that came was taken."""
        connection = self._connection
        return connection is None or not (connection.is_under_way or connection.pieces)

    def _closed(self) -> UpstreamUnavailable:
        return UpstreamUnavailable(
            BROKEN, operator_detail=f"{self._origin.address}: read after closing the answer"
        )

    async def read_all(self, *, limit_bytes: int) -> bytes:
        """The rest of the body.

        Raises:
            UpstreamUnavailable: the connection broke before the message was complete.
            UpstreamProtocolError: the message cannot be read, or is larger than the limit.
        """
        connection = self._connection
        if connection is not None and not connection.is_under_way and connection.failure is None:
            return self._rest(connection, limit_bytes)
        piece = await self.read()
        pieces, size = [], 0
        while piece:
            size += len(piece)
            if size > limit_bytes:
                self.close()
                raise self._too_large(limit_bytes)
            pieces.append(piece)
            piece = await self.read()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _rest(self, connection: Connection, limit_bytes: int) -> bytes:
        """All of a body that has arrived whole, as small ones do with their head."""
        body = connection.take() if connection.pieces else b""
        if len(body) > limit_bytes:
            self.close()
            raise self._too_large(limit_bytes)
        return body

    def _too_large(self, limit_bytes: int) -> UpstreamProtocolError:
        return UpstreamProtocolError(
            UNREADABLE,
            operator_detail=f"{self._origin.address}: the answer is larger than {limit_bytes} bytes",
        )

    def close(self) -> None:
        """Give the connection back if the message is complete, else abort it; twice does no harm."""
        connection = self._connection
        if connection is not None:
            self._connection = None
            self._client.release(self._origin, connection)


class UpstreamClient:
    """Connections to replicas, kept for the next request."""

    def __init__(
        self,
        *,
        connect_timeout_s: float,
        idle_max_s: float = 4.0,
        idle_connections_max: int = 1024,
        head_bytes_max: int = 65536,
    ) -> None:
        """Prepare; nothing is opened before the first request.

        Args:
            connect_timeout_s: for name, TCP and TLS together.
            idle_max_s: a connection idle for longer is not used again. vLLM closes after 5 s (uvicorn's
                timeout_keep_alive).
            idle_connections_max: beyond it, a connection is closed instead of kept; over all origins.
            head_bytes_max: limit for the head of an answer.
        """
        self._connect_timeout_s = connect_timeout_s
        self._idle_max_s = idle_max_s
        self._idle_connections_max = idle_connections_max
        self._head_bytes_max = head_bytes_max
        # Ordered by the time they became idle, so popitem() takes the youngest and any leaves in O(1).
        self._idle: dict[Origin, dict[Connection, None]] = {}
        self._idle_count = 0
        self._connections: set[Connection] = set()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._look_at_s = math.inf
        """When the timer looks for exchanges that take too long; never later than the first deadline."""
        self._tls: ssl.SSLContext | None = None
        self._is_closed = False
        self._all_gone: asyncio.Future[None] | None = None

    async def post(
        self, origin: Origin, path: str, *, headers: bytes, body: bytes, patience: Patience | None = None
    ) -> UpstreamResponse:
        """Send a request; return once the head of its answer is there.

        Args:
            origin: where to.
            path: behind the origin's base path; ASCII, from our own code, never a client's.
            headers: whole lines, each with its CR LF; host and content-length are added.
            body: sent in one write with the head up to 64 KB.
            patience: how long the answer may take, all of it; None: as long as it likes.

        Raises:
            UpstreamUnavailable: no connection, or it broke before an answer.
            UpstreamTimeout: connecting, or the answer, took too long.
            UpstreamProtocolError: what answered does not speak HTTP, or its head is too large.
        """
        if self._is_closed:
            raise self._closed_error(origin)
        connection = self._take_idle(origin)
        if connection is not None:
            sent_s = time.monotonic()
            connection.patience = patience
            if patience is not None:
                self.look_at(patience)
            try:
                await connection.send(path, headers, body)
            except UpstreamUnavailable:
                # The server closed it while the request was on its way: nothing was answered, so the request
                # may be sent again. Once, because a fresh connection cannot be stale; and only at once,
                # because a server that dies later may have worked on it.
                if connection.has_received or self._is_closed or time.monotonic() - sent_s > STALE_WITHIN_S:
                    raise
            else:
                return UpstreamResponse(self, origin, connection)
        connection = await self._connect(origin)
        connection.patience = patience
        if patience is not None:
            self.look_at(patience)
        await connection.send(path, headers, body)
        return UpstreamResponse(self, origin, connection)

    async def close(self) -> None:
        """Abort every connection, also those in use, and wait until they are gone."""
        self._is_closed = True
        for timer in (self._sweep_timer, self._look_timer):
            if timer is not None:
                timer.cancel()
        self._sweep_timer = self._look_timer = None
        self._idle.clear()
        self._idle_count = 0
        for connection in tuple(self._connections):
            connection.abort(_SHUTTING_DOWN)
        if self._connections:
            if self._all_gone is None:
                self._all_gone = asyncio.get_running_loop().create_future()
            # Shielded, because two may wait for it.
            await asyncio.shield(self._all_gone)

    def release(self, origin: Origin, connection: Connection) -> None:
        """Keep a connection for the next request, or end it; for UpstreamResponse."""
        if (
            self._is_closed
            or self._idle_count >= self._idle_connections_max
            or not connection.is_reusable()
            or not connection.is_open()
        ):
            connection.abort("the answer was not read to its end")
            return
        connection.make_idle(time.monotonic())
        idle = self._idle.get(origin)
        if idle is None:
            idle = self._idle[origin] = {}
        idle[connection] = None
        self._idle_count += 1
        if self._sweep_timer is None:
            self._sweep_timer = asyncio.get_running_loop().call_later(self._idle_max_s, self._sweep)

    def look_at(self, patience: Patience) -> None:
        """See to it that somebody looks when this deadline is over; for UpstreamResponse."""
        due_s = patience.deadline_s
        if due_s < self._look_at_s:
            if self._look_timer is not None:
                self._look_timer.cancel()
            self._look_at_s = due_s
            delay_s = max(0.0, due_s - time.monotonic())
            self._look_timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        """End what takes too long, and come back for the next deadline."""
        self._look_timer, self._look_at_s = None, math.inf
        # A timer may fire a moment early: loops count in milliseconds.
        now_s = time.monotonic() + _TIMER_GRAIN_S
        next_one: Patience | None = None
        for connection in tuple(self._connections):
            connection.expire(now_s)
            patience = connection.patience
            if patience is None or not connection.is_under_way:
                continue
            if next_one is None or patience.deadline_s < next_one.deadline_s:
                next_one = patience
        if next_one is not None:
            self.look_at(next_one)

    # ------------------------------------------------------------------------------------------- opening
    async def _connect(self, origin: Origin) -> Connection:
        address = origin.address
        loop = asyncio.get_running_loop()
        connection = Connection(
            address,
            origin.base_path,
            head_bytes_max=self._head_bytes_max,
            on_gone=functools.partial(self._forget, origin),
        )
        is_made = False
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await loop.create_connection(
                    lambda: connection,
                    origin.host,
                    origin.port,
                    ssl=await self._tls_context() if origin.is_tls else None,
                )
            is_made = True
        except TimeoutError:
            raise UpstreamTimeout(
                UNREACHABLE, operator_detail=f"{address}: no connection within {self._connect_timeout_s} s"
            ) from None
        except OSError as error:
            raise UpstreamUnavailable(UNREACHABLE, operator_detail=f"{address}: {error}") from error
        finally:
            if not is_made:
                # The loop only closes it, which over TLS is a polite exchange with the server.
                connection.abort("gave up connecting")
        if self._is_closed:
            connection.abort(_SHUTTING_DOWN)
            raise self._closed_error(origin)
        self._connections.add(connection)
        return connection

    @staticmethod
    def _closed_error(origin: Origin) -> UpstreamUnavailable:
        return UpstreamUnavailable(UNREACHABLE, operator_detail=f"{origin.address}: {_SHUTTING_DOWN}")

    async def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            # In a thread: reading the system's certificates takes tens of milliseconds.
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        return self._tls

    # ------------------------------------------------------------------------------------------- keeping
    def _take_idle(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        if not idle:
            return None
        oldest_s = time.monotonic() - self._idle_max_s
        while idle:
            connection = idle.popitem()[0]
            self._idle_count -= 1
            if connection.idle_since_s >= oldest_s and connection.is_open():
                return connection
            connection.abort("idle for too long")
        return None

    def _forget(self, origin: Origin, connection: Connection) -> None:
        self._connections.discard(connection)
        idle = self._idle.get(origin)
        if idle is not None and connection in idle:
            del idle[connection]
            self._idle_count -= 1
        if self._all_gone is not None and not self._connections and not self._all_gone.done():
            self._all_gone.set_result(None)

    def _sweep(self) -> None:
        """Close what has been idle for too long; runs only while something is idle."""
        self._sweep_timer = None
        now_s = time.monotonic()
        next_s = None
        for origin in tuple(self._idle):
            idle = self._idle[origin]
            for connection in tuple(idle):
                due_s = connection.idle_since_s + self._idle_max_s
                if due_s > now_s:
                    next_s = due_s if next_s is None else min(next_s, due_s)
                    break
                del idle[connection]
                self._idle_count -= 1
                connection.abort("idle for too long")
            if not idle:
                del self._idle[origin]
        if next_s is not None:
            self._sweep_timer = asyncio.get_running_loop().call_later(next_s - now_s, self._sweep)
