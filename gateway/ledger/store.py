"""How do attempts get into the database, and which of them are there already? Flushes, never commits.

On PostgreSQL by COPY, over the driver's own connection; see `writers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Final

import msgspec
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.db import metadata
from gateway.ledger.records import RECORD, Ended, record_of
from gateway.ledger.tables import Attempt

_COLUMNS: Final = tuple(column.name for column in metadata.tables["attempts"].columns)
_pick: Final = itemgetter(*map(RECORD.index, _COLUMNS))
_INSERT_SQLITE: Final = (
    f"INSERT INTO attempts ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608 - names of columns
)
# The instants let PostgreSQL look into the right months only. OFFSET 0 keeps it to one look at the index for
# each id: its statistics of a table that grows are old, and a plan for a small one reads all of it.
KNOWN_POSTGRESQL: Final = (
    "SELECT found.* FROM unnest(string_to_array($1, ',')) AS wanted (id), LATERAL ("
    "SELECT attempt_id, state, charge_usd_nanos FROM attempts"
    " WHERE attempt_id = wanted.id AND started_at_ms BETWEEN $2 AND $3 OFFSET 0) AS found"
)
"""State and charge by id; see `span_of` for its values."""
_KNOWN_SQLITE: Final = text(
    "SELECT attempt_id, state, charge_usd_nanos FROM attempts"
    " WHERE started_at_ms BETWEEN :first_ms AND :last_ms"
    " AND attempt_id IN (SELECT value FROM json_each(:ids))"
)
_encode = msgspec.json.Encoder().encode


class BookedMeanwhile(Exception):
    """Another process booked one of the attempts between our look and our insert: look again."""


def span_of(batch: Sequence[Ended]) -> tuple[str, int, int]:
    """The ids of a batch in one text, and the first and last instant at which its attempts started."""
    starts = [each.start.started_at_ms for each in batch]
    # One parameter for all ids: a statement of thousands takes longer to compile than to answer, and asyncpg
    # takes 2 µs for each element of an array. Ids hold no comma.
    return ",".join([each.start.attempt_id for each in batch]), min(starts), max(starts)


async def booked_already(session: AsyncSession, batch: Sequence[Ended]) -> dict[str, tuple[str, int | None]]:
    """State and charge of those attempts that are booked, by id; SQLite's."""
    _, first_ms, last_ms = span_of(batch)
    ids = _encode([each.start.attempt_id for each in batch]).decode()
    found = await session.execute(_KNOWN_SQLITE, {"ids": ids, "first_ms": first_ms, "last_ms": last_ms})
    return {attempt_id: (state, charge) for attempt_id, state, charge in found}


async def attempts_of(
    session: AsyncSession, request_id: str, *, tenant_id: str, between_ms: tuple[int, int]
) -> list[Attempt]:
    """The attempts of a tenant's request, in their order.

    Args:
        session: where to ask.
        request_id: as in x-request-id.
        tenant_id: whose.
        between_ms: first and last instant at which they may have started, epoch ms.
    """
    found = await session.execute(
        select(Attempt)
        .where(
            col(Attempt.request_id) == request_id,
            col(Attempt.tenant_id) == tenant_id,
            col(Attempt.started_at_ms).between(*between_ms),
        )
        .order_by(col(Attempt.attempt_number))
    )
    return list(found.scalars())


async def attempts_of_request(
    session: AsyncSession, request_id: str, *, between_ms: tuple[int, int]
) -> list[Attempt]:
    """The same for operators, whoever made the request."""
    found = await session.execute(
        select(Attempt)
        .where(col(Attempt.request_id) == request_id, col(Attempt.started_at_ms).between(*between_ms))
        .order_by(col(Attempt.attempt_number))
    )
    return list(found.scalars())


async def insert_attempts(session: AsyncSession, batch: Sequence[Ended], *, journal_id: str) -> None:
    """Book attempts that are not booked yet, on SQLite: nobody else writes meanwhile.

    Raises:
        StatementError: the database refuses a value (see `shipper`), or is away (a DBAPIError).
    """
    connection = await session.connection()
    await connection.exec_driver_sql(_INSERT_SQLITE, records_of(batch, journal_id=journal_id))


async def copy_attempts(driver: Any, batch: Sequence[Ended], *, journal_id: str) -> None:
    """Book attempts that are not booked yet, on PostgreSQL.

    Args:
        driver: asyncpg's connection.
        batch: the attempts.
        journal_id: the booking.

    Raises:
        asyncpg.PostgresError, asyncpg.InterfaceError, OverflowError: as asyncpg has them;
            UniqueViolationError: one of them is booked.
    """
    records = records_of(batch, journal_id=journal_id)
    await driver.copy_records_to_table("attempts", records=records, columns=_COLUMNS)


def records_of(batch: Sequence[Ended], *, journal_id: str) -> list[tuple[Any, ...]]:
    """The rows of `attempts`, their values in the order of its columns."""
    return [_pick(record_of(ended, journal_id=journal_id)) for ended in batch]
