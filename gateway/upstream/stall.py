"""How long may an engine keep us waiting?

One timer per wait, however many pieces arrive: progress only moves a deadline, and the timer looks at it
when it fires. `asyncio.timeout` around every read would cost a timer per chunk.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from gateway.errors import UpstreamTimeout


class StallGuard:
    """Cancels the task that entered it when there was no progress for too long.

    Used as a context manager around awaits; turns its own cancellation into UpstreamTimeout and leaves
    everybody else's alone.
    """

    __slots__ = ("_deadline_s", "_is_overdue", "_limit_s", "_loop", "_task", "_timer", "_what")

    def __init__(self, limit_s: float, what: str) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a stall guard needs a task to watch")
        self._task = task
        self._what = what
        self._limit_s = limit_s
        self._deadline_s = self._loop.time() + limit_s
        self._timer: asyncio.TimerHandle | None = None
        self._is_overdue = False

    def progress(self) -> None:
        """Something arrived."""
        self._deadline_s = self._loop.time() + self._limit_s

    def __enter__(self) -> Self:
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline_s, self._look)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del error, trace
        self.stop()
        if self._is_overdue:
            is_cancelled_by_others = self._task.uncancel() > 0
            if kind is asyncio.CancelledError and not is_cancelled_by_others:
                raise UpstreamTimeout(
                    "The model took too long to answer.",
                    operator_detail=f"no {self._what} within {self._limit_s:g} s",
                ) from None

    def stop(self) -> None:
        """No more watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        if self._loop.time() < self._deadline_s:
            self._timer = self._loop.call_at(self._deadline_s, self._look)
            return
        self._timer = None
        self._is_overdue = True
        self._task.cancel()
