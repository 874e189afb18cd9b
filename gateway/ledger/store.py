"""How do attempts get into the database, and which of them are there already? Flushes, never commits."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Final

import asyncpg
import msgspec
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, StatementError
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
_KNOWN_POSTGRESQL: Final = text(
    "SELECT found.* FROM unnest(string_to_array(CAST(:ids AS text), ',')) AS wanted (id), LATERAL ("
    "SELECT attempt_id, state, charge_usd_nanos FROM attempts"
    " WHERE attempt_id = wanted.id AND started_at_ms BETWEEN :first_ms AND :last_ms OFFSET 0) AS found"
)
_KNOWN_SQLITE: Final = text(
    "SELECT attempt_id, state, charge_usd_nanos FROM attempts"
    " WHERE started_at_ms BETWEEN :first_ms AND :last_ms"
    " AND attempt_id IN (SELECT value FROM json_each(:ids))"
)
_encode = msgspec.json.Encoder().encode


class BookedMeanwhile(Exception):
    """Another process booked one of the attempts between our look and our insert: look again."""


async def booked_already(session: AsyncSession, batch: Sequence[Ended]) -> dict[str, tuple[str, int | None]]:
    """State and charge of those attempts that are booked, by id."""
    starts = [each.start.started_at_ms for each in batch]
    ids = [each.start.attempt_id for each in batch]
    # One parameter for all ids: a statement of thousands takes longer to compile than to answer, and asyncpg
    # takes 2 µs for each element of an array. Ids hold no comma.
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    found = await session.execute(
        _KNOWN_POSTGRESQL if is_postgresql else _KNOWN_SQLITE,
        {
            "ids": ",".join(ids) if is_postgresql else _encode(ids).decode(),
            "first_ms": min(starts),
            "last_ms": max(starts),
        },
    )
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


async def insert_attempts(session: AsyncSession, batch: Sequence[Ended], *, journal_id: str) -> None:
    """Book attempts that are not booked yet; by COPY on PostgreSQL.

    Raises:
        BookedMeanwhile: one of them is. The transaction is void.
        StatementError: the database refuses a value (see `shipper`), or is away (a DBAPIError).
    """
    connection = await session.connection()
    records = [_pick(record_of(ended, journal_id=journal_id)) for ended in batch]
    if connection.dialect.name != "postgresql":
        await connection.exec_driver_sql(_INSERT_SQLITE, records)
        return
    # SQLAlchemy has no interface for COPY: its driver's is used (asyncpg 0.31). The transaction is
    # SQLAlchemy's, which begins with the first statement: there has been one, `booked_already`.
    driver: Any = (await connection.get_raw_connection()).driver_connection
    try:
        await driver.copy_records_to_table("attempts", records=records, columns=_COLUMNS)
    except asyncpg.UniqueViolationError:
        raise BookedMeanwhile from None
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        if isinstance(error, ValueError):  # asyncpg's own look at a value
            raise StatementError(str(error), "COPY attempts", None, error) from error
        raise DBAPIError("COPY attempts", None, error) from error
    except OverflowError as error:
        raise StatementError(str(error), "COPY attempts", None, error) from error
