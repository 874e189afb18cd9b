"""How do bytes get from the edge to the client, and how does the edge learn that the client has left?

Two answers. `AsgiWire` speaks ASGI, to whatever server or test there is. `direct.py` has the other one, which
writes to the socket itself and serves nearly all calls. The edge cannot tell them apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.types import Receive, Send

from gateway.api.error_bodies import Headers
from gateway.errors import InvalidRequest, PayloadTooLarge

WATCH_DELAY_S = 0.02


class Wire(Protocol):
    """The way to one client, for one request and its answer."""

    has_left: bool
    """The task was cancelled because the client left."""

    async def read_body(self, limit_bytes: int) -> bytes:
        """The request's whole body.

        Raises:
            PayloadTooLarge: it is longer than that.
            InvalidRequest: the client left before it was complete.
        """

    def watch(self) -> None:
        """From now on the task that called this is cancelled when the client leaves."""

    def unwatch(self) -> None:
        """The answer is complete: nobody is cancelled any more."""

    def whole(self, status: int, headers: Headers, body: bytes) -> Awaitable[None]:
        """Send one whole answer."""

    async def begin(self, status: int, headers: Headers) -> None:
        """Begin an answer in parts; its head may wait for the first of them."""

    async def part(self, data: bytes) -> None:
        """Send a part; waits while the client reads more slowly than we write."""

    @property
    def write(self) -> Callable[[bytes], bool] | None:
        """Sends a part at once; false: the client reads more slowly than we write, so `drain`.

        None: this way has only `part`.
        """

    async def drain(self) -> None:
        """Wait until the client has caught up."""

    async def end(self, data: bytes) -> None:
        """Send the last part, which may be empty."""


class AsgiWire:
    """Through `receive` and `send`.

    ASGI tells that the client has left only to whoever calls `receive` again, so somebody must wait there
    while the engine works. The wait starts a moment late: most answers to small requests are out before, and
    pay nothing for it.
    """

    __slots__ = ("_loop", "_receive", "_send", "_task", "_timer", "_watcher", "has_left")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.has_left = False

    async def read_body(self, limit_bytes: int) -> bytes:
        """The request's whole body; raises as `Wire` says."""
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise InvalidRequest("The client left before its request was complete.")
            body: bytes = message.get("body", b"")
            size += len(body)
            if size > limit_bytes:
                raise too_large(limit_bytes)
            if not message.get("more_body", False):
                return body if not pieces else b"".join([*pieces, body])
            pieces.append(body)

    def watch(self) -> None:
        """Cancel the calling task when the client leaves."""
        self._task = asyncio.current_task()
        self._timer = self._loop.call_later(WATCH_DELAY_S, self._begin_watch)

    def unwatch(self) -> None:
        """Cancel nobody any more."""
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send one whole answer."""
        headers = [*headers, (b"content-length", b"%d" % len(body))]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    @property
    def write(self) -> None:
        """ASGI's `send` is a coroutine."""

    async def drain(self) -> None:
        """Nothing to wait for: `part` has."""

    async def begin(self, status: int, headers: Headers) -> None:
        """Begin an answer in parts."""
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def part(self, data: bytes) -> None:
        """Send a part."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes) -> None:
        """Send the last part."""
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    def _begin_watch(self) -> None:
        self._timer = None
        # Owned by this object and ended with the request, so shutdown has nothing to wait for.
        self._watcher = self._loop.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self.has_left = True
            self._task.cancel()


def too_large(limit_bytes: int) -> PayloadTooLarge:
    """The refusal of a body, with what to do about it."""
    return PayloadTooLarge(
        f"The request body is larger than {limit_bytes:,} bytes: shorten the conversation, or ask the"
        " operator to raise TOLLGATE_LIMITS__BODY_BYTES_MAX."
    )
