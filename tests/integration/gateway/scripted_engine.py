"""How does a test decide every byte that an engine says?"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.integration.gateway.rig import Gateway, running, settings_for

Replay = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Engine:
    """A server that answers every generation with what it was given, after it was proved healthy."""

    def __init__(self) -> None:
        self.replay: Replay = _probe_answer
        self.asked: list[dict[str, Any]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                fields = dict(line.split(b": ", 1) for line in lines[1:] if b": " in line)
                body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
                if not head.startswith(b"POST"):
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                else:
                    self.asked.append(json.loads(body))
                    await self.replay(writer)
                await writer.drain()
        writer.close()


async def _probe_answer(writer: asyncio.StreamWriter) -> None:
    body = b'{"choices":[{"index":0,"text":"1"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
    writer.write(b"content-length: %d\r\n\r\n%s" % (len(body), body))


def whole(body: bytes) -> Replay:
    async def replay(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
        writer.write(b"content-length: %d\r\n\r\n%s" % (len(body), body))

    return replay


def stream(pieces: list[bytes], *, ends: bool = True) -> Replay:
    async def replay(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n")
        writer.write(b"transfer-encoding: chunked\r\n\r\n")
        for piece in pieces:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
        if ends:
            writer.write(b"0\r\n\r\n")

    return replay


@contextlib.asynccontextmanager
async def behind(home: Path) -> AsyncIterator[tuple[Gateway, Engine]]:
    """A gateway whose pools are both this engine."""
    engine = Engine()
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    try:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        settings = settings_for(home, {"speculative": [url], "plain": [url]})
        async with running(settings) as gateway:
            yield gateway, engine
    finally:
        server.close()
