"""Who may have something forecast now? One process at a time, a short queue, and answers that are remembered.

A forecast takes a process of hundreds of megabytes for seconds. The same question (today is no part of it, so
it stays the same for a day unless something comes late) is answered from memory for some minutes, also for
those who waited while it was computed. Nobody who waits holds a database session.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from gateway.errors import Overloaded
from gateway.forecasts.child import Errand, Found

AT_ONCE: Final = 1
WAITING_MAX: Final = 4
REMEMBERED_S: Final = 600.0
REMEMBERED_MAX: Final = 16
RETRY_AFTER_S: Final = 15


class ForecastDesk:
    """Takes questions."""

    def __init__(
        self, ask: Callable[[Errand], Awaitable[Found]], *, monotonic_s: Callable[[], float]
    ) -> None:
        """Take who computes, and what the time is."""
        self._ask = ask
        self._monotonic_s = monotonic_s
        self._running = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        self._known: OrderedDict[bytes, tuple[float, Found]] = OrderedDict()

    async def answer(self, errand: Errand) -> Found:
        """What the process says, or said a few minutes ago.

        Raises:
            Overloaded: too many wait already.
            ConfigurationError: the process died.
        """
        key = hashlib.sha256(msgspec.json.encode(errand, order="deterministic")).digest()
        known = self._remembered(key)
        if known is not None:
            return known
        if self._waiting >= AT_ONCE + WAITING_MAX:
            raise Overloaded(
                f"A forecast is being computed and {WAITING_MAX} wait already. Ask again in some seconds.",
                retry_after_s=RETRY_AFTER_S,
            )
        self._waiting += 1
        try:
            async with self._running:
                known = self._remembered(key)
                if known is None:
                    known = await self._ask(errand)
                    self._known[key] = (self._monotonic_s(), known)
                    while len(self._known) > REMEMBERED_MAX:
                        self._known.popitem(last=False)
                return known
        finally:
            self._waiting -= 1

    def _remembered(self, key: bytes) -> Found | None:
        at_s, found = self._known.get(key, (0.0, None))
        if found is None or self._monotonic_s() - at_s > REMEMBERED_S:
            self._known.pop(key, None)
            return None
        return found
