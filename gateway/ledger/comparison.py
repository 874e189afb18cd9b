"""How did requests fare under one policy version and under another? All SQL of the question; reads only.

A request is told by its first attempt, when that has ended: whether the caller got nothing from it, how long
it took, what it charged. A caller that left before the first content got nothing, however it is booked; one
that left later, or an attempt that a hedge overtook, took at least so long. An answer from the cache says
nothing.

Attempts are read in the order in which they were booked, never by when they ended: what a gateway books late
(the database was away, its process died and another one found its spool) is read when it is there. A
transaction may commit after a later one; so the bookings of the last `OVERLAP_MS` are looked at again, and
those that were read are known by their ids. Indexes: the journal's by time, the attempts' by booking.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Select, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.inference import AttemptState
from gateway.ledger.reports import PLATFORM_TENANT
from gateway.ledger.tables import Attempt, JournalTransaction
from gateway.ledger.writers import USAGE_KIND

OVERLAP_MS: Final = 60_000
"""So long may a booking take from its time stamp to its commit: some dozens of times what a batch takes."""
BOOKINGS_AT_ONCE: Final = 200
ROWS_MAX: Final = 20_000
"""Of one look, about: what is beyond is read by the next one."""
BEFORE_ROWS: Final = 2_000
"""Of what is read of the time before a canary."""
_OVERTAKEN: Final = "hedge_lost"
_SHORT: Final = 16
"""Characters by which a booking is known, the last of its id."""


class Bookings(msgspec.Struct):
    """How far the books were read."""

    until_ms: int
    """The latest time stamp of a booking that was read, epoch ms."""
    seen: dict[str, int] = msgspec.field(default_factory=dict)
    """Time stamps of those that were read within the overlap, by the end of their ids."""

    def took(self, transaction_id: str, at_ms: int) -> None:
        """One was read."""
        self.seen[transaction_id[-_SHORT:]] = at_ms
        self.until_ms = max(self.until_ms, at_ms)

    def forget(self) -> None:
        """What the next look does not come across is not remembered."""
        since_ms = self.until_ms - OVERLAP_MS
        self.seen = {name: at_ms for name, at_ms in self.seen.items() if at_ms >= since_ms}


@dataclass(frozen=True, slots=True)
class Fared:
    """How a request's first attempt ended."""

    request_id: str
    started_at_ms: int
    ended_at_ms: int
    policy_version: str
    is_failure: bool
    """Its caller got nothing from it."""
    latency_class: str
    ttft_ms: int | None
    """At least; None: not streamed, or it failed."""
    total_ms: int | None
    """At least; None: it failed."""
    charge_usd_nanos: int | None
    """None: it did not answer, or is unpriced."""


async def fared_since(
    session: AsyncSession,
    versions: Collection[str],
    bookings: Bookings,
    *,
    started_after_ms: int,
    rows_max: int = ROWS_MAX,
    at_once: int = BOOKINGS_AT_ONCE,
) -> list[Fared]:
    """Requests that these versions decided and that were not read before, each once, by their ends.

    Args:
        session: the caller's.
        versions: of the policy.
        bookings: how far they were read; moves on.
        started_after_ms: none of them can have started before, epoch ms.
        rows_max: after so many the rest is left to the next time.
        at_once: bookings in one statement.
    """
    found: list[Fared] = []
    async for some in _unread(session, bookings, at_once=at_once):
        statement = _first_attempts(
            versions,
            col(Attempt.journal_id).in_([transaction_id for transaction_id, _ in some]),
            col(Attempt.started_at_ms) > started_after_ms,
        )
        found += [_fared(row) for row in await session.execute(statement)]
        for transaction_id, at_ms in some:
            bookings.took(transaction_id, at_ms)
        if len(found) >= rows_max:
            break
    bookings.forget()
    return sorted(found, key=lambda one: (one.ended_at_ms, one.request_id))


async def fared_before(
    session: AsyncSession, version: str, *, after_ms: int, until_ms: int, rows_max: int = BEFORE_ROWS
) -> list[Fared]:
    """The last requests of a version that started in a span of time, in the order of their starts."""
    started = col(Attempt.started_at_ms)
    statement = (
        _first_attempts([version], started > after_ms, started <= until_ms)
        .order_by(started.desc(), col(Attempt.attempt_id).desc())
        .limit(rows_max)
    )
    return [_fared(row) for row in await session.execute(statement)][::-1]


async def _unread(
    session: AsyncSession, bookings: Bookings, *, at_once: int
) -> AsyncIterator[Sequence[tuple[str, int]]]:
    """Bookings that were not read, id and time stamp, some at a time."""
    at, number = col(JournalTransaction.at_ms), col(JournalTransaction.id)
    after = (bookings.until_ms - OVERLAP_MS, "")
    while True:
        rows = await session.execute(
            select(number, at)
            .where(
                at >= after[0],
                tuple_(at, number) > after,
                col(JournalTransaction.kind) == USAGE_KIND,
            )
            .order_by(at, number)
            .limit(at_once)
        )
        page = [(str(row[0]), int(row[1])) for row in rows]
        if not page:
            return
        after = (page[-1][1], page[-1][0])
        unread = [each for each in page if each[0][-_SHORT:] not in bookings.seen]
        if unread:
            yield unread


def _first_attempts(versions: Collection[str], *conditions: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    chosen: Any = select(
        col(Attempt.request_id),
        col(Attempt.started_at_ms),
        col(Attempt.ended_at_ms),
        col(Attempt.policy_version),
        col(Attempt.state),
        col(Attempt.error_code),
        col(Attempt.service_tier),
        col(Attempt.is_streaming),
        col(Attempt.ttft_ms),
        col(Attempt.total_ms),
        col(Attempt.charge_usd_nanos),
    )
    asked: Select[*tuple[Any, ...]] = chosen.where(
        *conditions,
        col(Attempt.policy_version).in_(versions),
        col(Attempt.attempt_number) == 1,
        col(Attempt.cache) != "hit",
        col(Attempt.tenant_id) != PLATFORM_TENANT,
    )
    return asked


def _fared(row: Any) -> Fared:
    took_ms = row.total_ms if row.total_ms is not None else max(0, row.ended_at_ms - row.started_at_ms)
    is_answer, ttft_ms = row.state == AttemptState.ANSWERED, row.ttft_ms if row.is_streaming else None
    has_left = row.state == AttemptState.CANCELLED
    is_overtaken = row.error_code == _OVERTAKEN
    is_timed = is_answer or has_left or is_overtaken
    if ttft_ms is None and row.is_streaming and not is_answer:
        ttft_ms = took_ms  # it had not come by then
    return Fared(
        request_id=row.request_id,
        started_at_ms=row.started_at_ms,
        ended_at_ms=row.ended_at_ms,
        policy_version=row.policy_version,
        is_failure=row.ttft_ms is None if has_left else not (is_answer or is_overtaken),
        latency_class=_class_of(row.service_tier),
        ttft_ms=ttft_ms if is_timed else None,
        total_ms=took_ms if is_timed else None,
        charge_usd_nanos=row.charge_usd_nanos if is_answer else None,
    )


def _class_of(asked: str | None) -> str:
    return "default" if asked is None or asked == "auto" else asked
