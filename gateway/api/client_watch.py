"""Has the client left?

ASGI tells that only to whoever calls `receive` again, so somebody must wait there while the engine works.
The wait starts a moment late: most answers to small requests are out before, and pay nothing for it.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive

DELAY_S = 0.02


class ClientWatch:
    """Cancels the task that entered it when the client disconnects."""

    __slots__ = ("_loop", "_receive", "_task", "_timer", "_watcher", "has_left")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.has_left = False
        """The cancellation that the task got came from here."""

    def __enter__(self) -> Self:
        self._timer = self._loop.call_later(DELAY_S, self._begin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace
        self.stop()

    def stop(self) -> None:
        """The answer is complete: nobody is cancelled any more."""
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    def _begin(self) -> None:
        self._timer = None
        # Owned by this object and ended with the request, so shutdown has nothing to wait for.
        self._watcher = self._loop.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self.has_left = True
            self._task.cancel()
