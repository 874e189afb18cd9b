"""What does the pipeline hand to the edge: a whole answer, or one that is still coming?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from gateway.attempt_log import AttemptLog
from gateway.cache.lookup import AnswerCache, KeptAnswer, Recording
from gateway.errors import UpstreamError
from gateway.identity.shedding import Seat
from gateway.inference import AttemptState
from gateway.ledger.settlement import Outcome, estimated_input_tokens
from gateway.money import UsdNanos
from gateway.plan import ServedFacts
from gateway.upstream.answer_stream import AnswerStream

REPLAY_BYTES = 65_536


class Served(msgspec.Struct, frozen=True):
    """A whole answer."""

    facts: ServedFacts
    body: bytes
    charge_usd_nanos: UsdNanos | None
    """None: unpriced."""


class StreamedAnswer(Protocol):
    """An answer that is still coming. Whoever sends it on ends it, in exactly one of the three ways."""

    facts: ServedFacts

    async def read(self) -> bytes:
        """The next bytes for the client; nothing when it is complete."""

    async def pour(self, write: Callable[[bytes], bool]) -> bool:
        """Hand further bytes to `write`; true: complete; false: call again when the client can take more."""

    def finish(self) -> None:
        """It was complete."""

    def fail(self, error: UpstreamError) -> None:
        """The engine failed after the first content."""

    def abandon(self) -> None:
        """The client left."""


class ReplayedStream:
    """A stream from the cache; it is settled already, so that its end changes nothing."""

    __slots__ = ("_rest", "facts")

    def __init__(self, facts: ServedFacts, body: bytes) -> None:
        self.facts = facts
        self._rest = body

    async def read(self) -> bytes:
        """The next piece, of a size that a slow client's connection can take."""
        piece, self._rest = self._rest[:REPLAY_BYTES], self._rest[REPLAY_BYTES:]
        return piece

    async def pour(self, write: Callable[[bytes], bool]) -> bool:
        """Hand the next piece to `write`."""
        piece = await self.read()
        if piece:
            write(piece)
        return not piece

    def finish(self) -> None:
        """Nothing is open."""

    def fail(self, error: UpstreamError) -> None:
        """Nothing is open."""

    def abandon(self) -> None:
        """Nothing is open."""


class ServedStream:
    """A stream that an engine is writing."""

    __slots__ = (
        "_attempt",
        "_cache",
        "_plan",
        "_recording",
        "_reservation",
        "_seat",
        "_slot",
        "_stream",
        "facts",
    )

    def __init__(
        self, facts: ServedFacts, stream: AnswerStream, log: AttemptLog, *, cache: AnswerCache, seat: Seat
    ) -> None:
        self._seat = seat
        self.facts = facts
        self._stream = stream
        self._plan = log.plan
        self._attempt = log.current
        self._reservation = log.reservation
        self._cache = cache
        self._slot = log.plan.slot if log.plan.slot is not None and log.plan.slot.may_keep else None
        self._recording = None if self._slot is None else Recording(cache.entry_bytes_max)

    async def read(self) -> bytes:
        """The next bytes for the client; nothing when it is complete.

        Raises:
            UpstreamError: the engine failed in the middle; call `fail` with it.
        """
        block = await self._stream.read()
        if self._recording is not None:
            self._recording.add(block)
        return block

    async def pour(self, write: Callable[[bytes], bool]) -> bool:
        """Hand further bytes to `write` as they arrive; true: it is complete; raises as `read` does."""
        recording = self._recording
        if recording is None:
            return await self._stream.pour(write)

        def both(block: bytes) -> bool:
            recording.add(block)
            return write(block)

        return await self._stream.pour(both)

    def finish(self) -> None:
        """It was complete."""
        self._end(AttemptState.ANSWERED, None)
        body = None if self._recording is None else self._recording.whole()
        if self._slot is not None and body is not None:
            self._cache.keep(self._slot, KeptAnswer(pool=self.facts.pool, body=body))

    def fail(self, error: UpstreamError) -> None:
        """The engine failed after the first content."""
        self._end(AttemptState.INTERRUPTED, error)

    def abandon(self) -> None:
        """The client left: close the engine's connection, so that it stops generating."""
        # After [DONE] the client has all of it: only the end of the engine's message was still to come.
        whole = self._stream.relay.is_done
        self._end(AttemptState.ANSWERED if whole else AttemptState.CANCELLED, None)

    def _end(self, state: AttemptState, error: UpstreamError | None) -> None:
        copy = self._plan.copy
        if copy is not None and state is not AttemptState.CANCELLED:
            copy.offer()
        self._seat.leave()
        timing = self._stream.timing
        self._stream.close(failure=error)
        relay = self._stream.relay
        self._attempt.end(
            Outcome(
                state=state,
                usage=relay.usage,
                produced_tokens=relay.content_events,
                status_code=200,
                error_code=None if error is None else error.code,
                timing=timing,
                engine=relay.engine,
            )
        )
        self._reservation.end()
        if relay.usage is not None:
            self._plan.permit.end(relay.usage.total)
        else:  # cut off: what was asked, and what certainly was generated
            self._plan.permit.end(estimated_input_tokens(self._plan.call.body_bytes) + relay.content_events)
