"""How does a test play the server of a connection, on asyncio's loop and on uvloop?

A script is run for each connection and says what the server does with it, over asyncio's streams. Every test
is run on both loops by `on_both_loops`, which also fails a test that leaves a transport open or an error
unheard.
"""

import asyncio
import contextlib
import gc
import socket
import ssl
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import uvloop

from gateway.errors import UpstreamError
from gateway.upstream.client import Origin, UpstreamClient, UpstreamResponse

HELLO: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
HEADERS: Final = b"content-type: application/json\r\n"
SOON_S: Final = 30.0
"""Patience with a busy machine; what is awaited takes milliseconds."""
LOOPS: Final[dict[str, Callable[[], asyncio.AbstractEventLoop]]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}


def on_both_loops(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test without fixtures on asyncio's own loop and on uvloop."""

    @pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS.keys())
    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        unheard: list[dict[str, Any]] = []
        # What other tests left in memory is no business of this one, and looking through it takes a second.
        gc.freeze()
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.get_loop().set_exception_handler(lambda _loop, context: unheard.append(context))
                runner.run(asyncio.wait_for(test(), 60))
            # A transport that was left open warns when it is collected, and a warning is an error.
            gc.collect()
        finally:
            gc.unfreeze()
        assert unheard == [], [str(one) for one in unheard]

    run.__name__ = test.__name__
    return run


class Visit:
    """One connection, as the server sees it."""

    def __init__(self, server: "Server", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """The next request's body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:-2])
        body = await self.reader.readexactly(int(fields[b"content-length"]))
        self.server.requests.append((head, body))
        self.server.asked.set()
        return body

    def send(self, data: bytes) -> None:
        # A client that hung up is no fault of the server's; uvloop raises where asyncio writes to nobody.
        if not self.writer.transport.is_closing():
            self.writer.write(data)

    async def until_gone(self) -> None:
        """Until the client ends the connection; what it still sends does not matter."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(1 << 16):
                pass
        self.server.noticed.set()

    def reset(self) -> None:
        """End with RST instead of FIN."""
        self.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.writer.transport.abort()


Script = Callable[[Visit], Awaitable[None]]


class Server:
    """Runs a script for each connection."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._tasks: set[asyncio.Task[Any]] = set()
        self.visits: list[Visit] = []
        self.requests: list[tuple[bytes, bytes]] = []
        self.gone = 0
        self.asked = asyncio.Event()
        self.noticed = asyncio.Event()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.visits.append(Visit(self, reader, writer))
        try:
            await self._script(self.visits[-1])
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            self.gone += 1
            writer.close()

    async def end(self) -> None:
        for visit in self.visits:
            visit.writer.transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)


@contextlib.asynccontextmanager
async def serving(
    script: Script, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Server, Origin]]:
    server = Server(script)
    listening = await asyncio.start_server(server.accept, "127.0.0.1", 0, ssl=tls)
    try:
        port = listening.sockets[0].getsockname()[1]
        yield server, Origin.parse(f"{'https' if tls else 'http'}://127.0.0.1:{port}")
    finally:
        listening.close()
        await server.end()


@contextlib.asynccontextmanager
async def client_of(
    *, connect_timeout_s: float = SOON_S, idle_max_s: float = 4.0, idle_connections_max: int = 1024
) -> AsyncIterator[UpstreamClient]:
    client = UpstreamClient(
        connect_timeout_s=connect_timeout_s, idle_max_s=idle_max_s, idle_connections_max=idle_connections_max
    )
    try:
        yield client
    finally:
        await client.close()
        assert not client._connections


async def post(client: UpstreamClient, origin: Origin, body: bytes = b"{}") -> UpstreamResponse:
    return await client.post(origin, "/v1/chat/completions", headers=HEADERS, body=body)


async def exchange(client: UpstreamClient, origin: Origin, body: bytes = b"{}") -> bytes:
    """A whole request, its connection given back."""
    response = await post(client, origin, body)
    try:
        return await response.read_all(limit_bytes=1 << 24)
    finally:
        response.close()


async def soon(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), SOON_S)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not holds():  # noqa: ASYNC110 # what is awaited has no event
            await asyncio.sleep(0.005)


async def cancelled(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def start(work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    return asyncio.get_running_loop().create_task(work)


def idle_of(client: UpstreamClient) -> int:
    count = sum(len(idle) for idle in client._idle.values())
    assert count == client._idle_count
    return count


async def say_hello(visit: Visit) -> None:
    while True:
        await visit.request()
        visit.send(HELLO)


async def stay_silent(visit: Visit) -> None:
    await visit.request()
    await visit.until_gone()


def answer_with(*pieces: bytes) -> Script:
    """Send these and close."""

    async def script(visit: Visit) -> None:
        await visit.request()
        for piece in pieces:
            visit.send(piece)
            await asyncio.sleep(0.01)

    return script


@contextlib.contextmanager
def full_backlog() -> Iterator[Origin]:
    """An address that does not answer: its queue of connections is full."""
    with contextlib.ExitStack() as held:
        listening = held.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        address = listening.getsockname()
        for _ in range(8):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(address)
        yield Origin("127.0.0.1", address[1], is_tls=False, base_path="")


def assert_names_nothing(error: UpstreamError, origin: Origin) -> None:
    assert origin.address in error.operator_detail
    assert origin.host not in error.caller_detail
    assert str(origin.port) not in error.caller_detail
    assert error.caller_detail.endswith(".")


@contextlib.contextmanager
def certified() -> Iterator[tuple[ssl.SSLContext, ssl.SSLContext]]:
    """Contexts of a server at 127.0.0.1 and of a client that trusts it."""
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder, "key.pem"), Path(folder, "certificate.pem")
        command = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=t"
        )
        subprocess.run(
            [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
            check=True,
            capture_output=True,
        )
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(certificate, key)
        yield server, ssl.create_default_context(cafile=certificate)
