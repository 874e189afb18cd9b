"""What is a stream whose first content is there, and what does its replica's lease learn of how it ends?

`dispatch.py` opens it; from then on nobody else may take over, and whoever reads it closes it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Protocol

from gateway.errors import UpstreamError, UpstreamOverloaded, UpstreamTimeout, UpstreamUnavailable
from gateway.inference import AttemptTiming, Target
from gateway.settings import TimeoutSettings
from gateway.upstream.client import UpstreamResponse
from gateway.upstream.outside import EventSource
from gateway.upstream.patience import Patience
from gateway.upstream.stall import StallGuard
from gateway.upstream.stream import StreamRelay

_FURTHER = "further token"
_END = "end of the stream"
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
        "_head",
        "_is_closed",
        "_lease",
        "_patience",
        "_pours",
        "_response",
        "_started_s",
        "_timeouts",
        "_ttft_ms",
        "_until_s",
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
        self._timeouts = timeouts
        self._until_s = time.monotonic() + timeouts.stream_total_s
        self._pours = response if isinstance(response, UpstreamResponse) else None
        """The same, where its pieces can be handed on as they arrive."""
        self._patience: Patience | None = None

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
        if self._pours is not None:  # the first token is there: its limit must not end a slow client's stream
            self._expect(self._pours)

    async def read(self) -> bytes:
        """The next bytes for the client; nothing once the stream is complete.

        Raises:
            UpstreamError: the engine failed in the middle.
        """
        if self._head:
            head, self._head = self._head, b""
            return head
        if self._pours is None:  # others carry it: only the task that waits can be ended
            limit_s = min(self._timeouts.between_tokens_s, self._until_s - time.monotonic())
            with StallGuard(max(0.0, limit_s), _FURTHER):
                block = await self._next()
        else:
            self._expect(self._pours).renew()
            block = await self._next()
        if not block:
            await self._read_end()
        return block

    async def pour(self, write: Callable[[bytes], bool]) -> bool:
        """Have all further bytes for the client go to `write` as they arrive, without a wait for each.

        Returns true once the stream is complete; false when more is to come, and the caller calls again once
        the client has caught up: `write` said no to more for now.

        Raises:
            UpstreamError: the engine failed in the middle.
        """
        source = self._pours
        if source is None or self._head:
            block = await self.read()
            if block:
                write(block)
            return not block
        relay, patience = self.relay, self._expect(source)
        failed: list[UpstreamError] = []
        is_full = False

        def take(chunk: bytes) -> bool:
            nonlocal is_full
            patience.renew()
            try:
                block = relay.feed(chunk)
            except UpstreamError as error:
                failed.append(error)
                return True
            if block and not write(block):
                is_full = True
            if relay.failure is not None:  # it came behind content, in the same piece
                failed.append(relay.failure)
            return is_full or relay.is_done or bool(failed)

        patience.renew()
        while not (relay.is_done or is_full):
            await source.pour(take)
            if failed:
                raise failed[0]
            if source.is_complete and not relay.is_done:
                relay.end()
        if not relay.is_done:
            return False
        await self._read_end()
        return True

    def _expect(self, source: UpstreamResponse) -> Patience:
        if self._patience is None:
            limit_s = self._timeouts.between_tokens_s
            self._patience = Patience(limit_s, _FURTHER, is_renewed=True, until_s=self._until_s)
            source.allow(self._patience)
        return self._patience

    async def _next(self) -> bytes:
        relay = self.relay
        while not relay.is_done:
            chunk = await self._response.read()
            if not chunk:
                relay.end()
            if block := relay.feed(chunk):
                return block
        return b""

    async def _read_end(self) -> None:
        """Read the end of the HTTP message behind [DONE], so that the connection can be used again."""
        # The answer is whole; what happens to its connection now only decides whether that is kept. The
        # guard is inside, so that its timeout is one of the errors that do not matter any more.
        source = self._pours
        if source is None:
            with contextlib.suppress(UpstreamError), StallGuard(_END_S, _END):
                while await self._response.read():
                    pass
        elif not source.is_complete:
            source.allow(Patience(_END_S, _END))
            with contextlib.suppress(UpstreamError):
                while await source.read():
                    pass

    def close(self, *, failure: UpstreamError | None = None) -> None:
        """Let go of the replica: the connection is reused if the answer was whole, and closed if not."""
        if self._is_closed:
            return
        self._is_closed = True
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
