r"""How does a test cut a connection at an exact point of what is said on it?

    with TcpProxy(server_port) as proxy:
        proxy.cut(Cut(reply=b"COMMIT\x00", asked=b"COPY "))
        ...  # the client is connected to 127.0.0.1:proxy.port
        assert proxy.cuts_made == 1

One asyncio loop in a thread of its own, so that tests stay plain functions. Bytes pass as they are; only
where a cut says so does a connection end, or fall silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import TracebackType
from typing import Final, Self

_READ_BYTES: Final = 65_536
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with a time of zero: close() sends RST (socket(7))."""


class Manner(StrEnum):
    """How a connection is cut."""

    RESET = "reset"
    """Both sides get RST."""
    CLOSE = "close"
    """Both sides get FIN, in the middle of whatever was being said."""
    STALL = "stall"
    """Nothing reaches the client any more; its own end is passed on."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a connection ends."""

    reply: bytes = b""
    """In what the server says; it is withheld. Empty: as soon as the client said `asked`, withheld too."""
    asked: bytes = b""
    """Only if the client has said this since the last `reply`."""
    unless: bytes = b""
    """Not if the client has said this since the last `reply`."""
    nth: int = 1
    """At which `reply` of the connection that was asked for so."""
    manner: Manner = Manner.RESET
    times: int = 1
    """How many connections: a client may try an idle connection that breaks at once a second time."""


@dataclass(slots=True, eq=False)
class _Connection:
    """One client's connection and the one made for it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    heard: bytes = b""
    """What the client said since the last reply that a cut looks for."""
    tail: bytes = b""
    """The end of what the server said: a reply may come in two pieces."""
    count: int = 0
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, manner: Manner) -> None:
        for writer in (self.client, self.server):
            if manner is Manner.RESET:
                sock: socket.socket = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()
            else:
                writer.close()
        self.is_over.set()


class TcpProxy:
    """A port that stands for another one."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._cut: Cut | None = None
        self._connections: set[_Connection] = set()
        self.cuts_made = 0
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._listens = threading.Event()
        self.port = 0
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._run(),), daemon=True
        )
        self._thread.start()
        if not self._listens.wait(10):
            raise RuntimeError("the proxy does not listen")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def cut(self, cut: Cut) -> None:
        """Cut the next connection of which this is true; one connection, once."""
        self._cut = cut

    def pass_on(self) -> None:
        """Cut nothing any more."""
        self._cut = None

    def stop(self) -> None:
        """Close everything; twice does no harm."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(10)
            self._loop.close()

    async def _run(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=2048)
        self.port = int(server.sockets[0].getsockname()[1])
        self._listens.set()
        await self._stopping.wait()
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for connection in list(self._connections):
            connection.end(Manner.CLOSE)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=5)
            for task in late:
                task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()  # as if nobody listened
            return
        connection = _Connection(writer, to_server)
        self._connections.add(connection)
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._up(reader, connection))
                pumps.create_task(self._down(from_server, connection))
        finally:
            self._connections.discard(connection)
            connection.end(Manner.CLOSE)

    async def _up(self, reader: asyncio.StreamReader, connection: _Connection) -> None:
        with contextlib.suppress(OSError):
            while not connection.is_over.is_set() and (data := await reader.read(_READ_BYTES)):
                cut = self._cut
                if cut is not None:
                    connection.heard += data
                    if not cut.reply and cut.asked in connection.heard:
                        self._make(cut, connection)
                        while await reader.read(_READ_BYTES):  # a stall: nobody listens
                            continue
                        break
                connection.server.write(data)
                await connection.server.drain()
        connection.end(Manner.CLOSE)

    async def _down(self, reader: asyncio.StreamReader, connection: _Connection) -> None:
        with contextlib.suppress(OSError):
            while not connection.is_over.is_set() and (data := await reader.read(_READ_BYTES)):
                cut = self._cut
                if cut is not None and cut.reply:
                    before = self._before_cut(cut, data, connection)
                    if before is not None:
                        connection.client.write(data[:before])
                        with contextlib.suppress(OSError):
                            await connection.client.drain()
                        self._make(cut, connection)
                        return
                connection.client.write(data)
                await connection.client.drain()
        connection.end(Manner.CLOSE)

    def _before_cut(self, cut: Cut, data: bytes, connection: _Connection) -> int | None:
        """How many of these bytes still pass; None: all, there is no cut here."""
        seen, begins = connection.tail + data, -len(connection.tail)
        position = 0
        while (found := seen.find(cut.reply, position)) >= 0:
            position = found + len(cut.reply)
            is_asked = cut.asked in connection.heard and not (cut.unless and cut.unless in connection.heard)
            if cut.nth == 1 or not is_asked:
                connection.heard = b""
            connection.count += is_asked
            if is_asked and connection.count >= cut.nth:
                return max(0, found + begins)
        connection.tail = seen[max(position, len(seen) - len(cut.reply) + 1) :]
        return None

    def _make(self, cut: Cut, connection: _Connection) -> None:
        self._cut = replace(cut, times=cut.times - 1) if cut.times > 1 else None
        self.cuts_made += 1
        if cut.manner is not Manner.STALL:
            connection.end(cut.manner)
