"""What is a stream whose first content is there, and what does its replica's lease learn of how it ends?

`dispatch.py` opens it; from then on nobody else may take over, and whoever reads it closes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Protocol

from gateway.errors import UpstreamError, UpstreamOverloaded, UpstreamTimeout, UpstreamUnavailable
from gateway.inference import AttemptTiming, Target
from gateway.settings import TimeoutSettings
from gateway.upstream.outside import EventSource
from gateway.upstream.stall import StallGuard
from gateway.upstream.stream import StreamRelay

_END_S = 1.0
"""Between [DONE] and the end of the message nothing is left to compute."""


class Lease(Protocol):
    """A claim on whoever is tried: a replica's lease in the registry, or what stands for one outside."""

    @property
    def replica(self) -> str:
        """Its name."""

    @property
    def url(self) -> str:
        """Its base URL."""

    def succeeded(self) -> None:
        """It answered as it should."""

    def failed(self, detail: str, *, fatal: bool = False, slow: bool = False) -> None:
        """It was at fault."""

    def release(self) -> None:
        """The attempt is over."""


class AnswerStream:
    """A stream whose first content is there; nobody else may take over from here."""

    __slots__ = (
        "_guard",
        "_head",
        "_is_closed",
        "_lease",
        "_response",
        "_started_s",
        "_ttft_ms",
        "relay",
        "replica",
        "target",
    )

    def __init__(
        self,
        *,
        target: Target,
        lease: Lease,
        response: EventSource,
        relay: StreamRelay,
        started_s: float,
        timeouts: TimeoutSettings,
    ) -> None:
        self.target = target
        self.replica = lease.replica
        self.relay = relay
        self._lease = lease
        self._response = response
        self._started_s = started_s
        self._ttft_ms: int | None = None
        self._head = b""
        self._is_closed = False
        until_s = asyncio.get_running_loop().time() + timeouts.stream_total_s
        self._guard = StallGuard(timeouts.between_tokens_s, "further token", until_s=until_s)

    def belongs_here(self) -> None:
        """Whoever calls this reads on, though another task has opened it."""
        self._guard.watch_me()

    @property
    def timing(self) -> AttemptTiming:
        """How long it took so far."""
        return AttemptTiming(ttft_ms=self._ttft_ms, total_ms=_ms_since(self._started_s))

    async def read_until_content(self) -> None:
        """Read up to the first content; what came before it is kept.

        Raises:
            UpstreamError: the engine failed first.
        """
        while not (self.relay.has_content or self.relay.is_done):
            chunk = await self._response.read()
            if not chunk:
                self.relay.end()
            self._head += self.relay.feed(chunk)
            if self.relay.failure is not None:  # nobody has seen anything of it yet
                raise self.relay.failure
        self._ttft_ms = _ms_since(self._started_s)

    async def read(self) -> bytes:
        """The next bytes for the client; nothing once the stream is complete.

        Raises:
            UpstreamError: the engine failed in the middle.
        """
        if self._head:
            head, self._head = self._head, b""
            return head
        relay, guard = self.relay, self._guard
        guard.progress()
        with guard:
            while not relay.is_done:
                chunk = await self._response.read()
                if not chunk:
                    relay.end()
                if block := relay.feed(chunk):
                    return block
        await self._read_end()
        return b""

    async def _read_end(self) -> None:
        """Read the end of the HTTP message behind [DONE], so that the connection can be used again."""
        # The answer is whole; what happens to its connection now only decides whether that is kept. The
        # guard is inside, so that its timeout is one of the errors that do not matter any more.
        with contextlib.suppress(UpstreamError), StallGuard(_END_S, "end of the stream"):
            while await self._response.read():
                pass

    def close(self, *, failure: UpstreamError | None = None) -> None:
        """Let go of the replica: the connection is reused if the answer was whole, and closed if not."""
        if self._is_closed:
            return
        self._is_closed = True
        self._guard.stop()
        self._response.close()
        if failure is not None:
            count_failure(self._lease, failure)
        elif self.relay.is_done:
            self._lease.succeeded()
        self._lease.release()


def count_failure(lease: Lease, error: UpstreamError) -> None:
    """Tell a replica's lease that it was at fault, and how badly."""
    if isinstance(error, UpstreamOverloaded):
        return  # busy is not ill: ejecting it would only push its load onto the others
    is_slow = isinstance(error, UpstreamTimeout)
    lease.failed(error.operator_detail, fatal=is_refused(error), slow=is_slow)


def is_refused(error: UpstreamError) -> bool:
    """Nothing listens there."""
    return isinstance(error, UpstreamUnavailable) and isinstance(error.__cause__, ConnectionRefusedError)


def _ms_since(started_s: float) -> int:
    return round((time.monotonic() - started_s) * 1000)


def timing_since(started_s: float) -> AttemptTiming:
    """Of an attempt that is over, by time.monotonic() of its start."""
    return AttemptTiming(total_ms=_ms_since(started_s))
