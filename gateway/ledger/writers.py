"""Which statements book a batch? What `posting` decides is read and written here, for two databases.

`SessionWriter` speaks SQLAlchemy, a statement for each table: SQLite, where a round trip costs nothing.
`PostgresWriter` speaks to the driver itself, in the caller's transaction: attempts go by COPY, and all that
follows from them is one statement, its rows one JSON document. SQLAlchemy takes 0.3 ms of this process's CPU
for each statement, and a batch needed twelve.

Neither commits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import asyncpg
import msgspec
from sqlalchemy import insert, select, tuple_
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.db import insert_adding, insert_ignoring_duplicates, metadata
from gateway.ledger.buckets import Bucket
from gateway.ledger.journal import write_transaction
from gateway.ledger.records import Ended
from gateway.ledger.slice_store import (
    SliceState,
    WindowState,
    locked_windows,
    save_slices,
    save_windows,
    slices_of,
    window_of,
)
from gateway.ledger.store import (
    KNOWN_POSTGRESQL,
    BookedMeanwhile,
    booked_already,
    copy_attempts,
    insert_attempts,
    span_of,
)
from gateway.ledger.tables import BudgetAlert, SpendDay, SpendHour

InsertReceipts = Callable[[Any, list[dict[str, Any]]], Awaitable[None]]
"""Writes receipts in the caller's transaction (a session, or asyncpg's connection); routing's, which the
ledger may not know."""

Learn = Callable[[Any, Sequence[Ended], int], Awaitable[None]]
"""Takes from attempts what they teach, in the transaction that books them (its connection as above, the
attempts, epoch ms); likewise injected."""

USAGE_KIND: Final = "usage"


async def learn_nothing(connection: Any, fresh: Sequence[Ended], now_ms: int) -> None:
    """For books that nobody routes by."""


@dataclass(slots=True)
class Outcome:
    """What a batch comes to, beside its attempts."""

    journal_id: str
    attempts: int
    owed: dict[str, int]
    """Amounts by account, nano-USD; together zero."""
    hours: list[dict[str, Any]]
    """Sums to add to `spend_hours`, in the order of their keys."""
    windows: dict[Bucket, WindowState] = field(default_factory=dict)
    """As they become, of the buckets that are drawn on."""
    slices: list[tuple[Bucket, SliceState]] = field(default_factory=list)
    postings: list[dict[str, Any]] = field(default_factory=list)
    receipts: list[dict[str, Any]] = field(default_factory=list)


class Writer(Protocol):
    """The statements of one transaction that books."""

    async def known(self, batch: Sequence[Ended]) -> dict[str, tuple[str, int | None]]:
        """State and charge of those attempts that are booked, by id."""

    async def insert_attempts(self, fresh: Sequence[Ended], *, journal_id: str) -> None:
        """Book attempts.

        Raises:
            BookedMeanwhile: one of them is booked by now; begin again.
            StatementError: a value is refused, or the database is away.
        """

    async def locked(
        self, buckets: Sequence[Bucket], owner_id: str
    ) -> tuple[dict[Bucket, WindowState], dict[Bucket, SliceState]]:
        """The buckets, locked until the transaction ends, and what is lent on them to one process."""

    async def write(self, outcome: Outcome, *, now_ms: int) -> None:
        """Write down all of it."""

    async def learn(self, fresh: Sequence[Ended], *, now_ms: int) -> None:
        """Let attempts teach; the last that is locked."""

    async def told(self, buckets: Sequence[Bucket]) -> set[tuple[Bucket, int]]:
        """The shares of these buckets that somebody was told of."""

    async def tell(self, rows: list[dict[str, Any]]) -> None:
        """Remember who was told of which share."""


def note_of(attempts: int) -> str:
    """What the journal says of a batch."""
    return f"{attempts} attempts"


def days_of(hours: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The daily sums of hourly ones, in the order of their keys."""
    days: dict[tuple[Any, ...], dict[str, Any]] = {}
    for hour in hours:
        key = (hour["hour_start_ms"] // _MS_PER_DAY * _MS_PER_DAY, *(hour[name] for name in _HOUR_KEYS[1:]))
        day = days.get(key)
        if day is None:
            named = dict(zip(("day_start_ms", *_HOUR_KEYS[1:]), key, strict=True))
            day = days[key] = {**named, **dict.fromkeys(_HOUR_SUMS, 0)}
        for name in _HOUR_SUMS:
            day[name] += hour[name]
    return [days[key] for key in sorted(days)]


class SessionWriter:
    """By SQLAlchemy."""

    def __init__(
        self, session: AsyncSession, insert_receipts: InsertReceipts, learn: Learn = learn_nothing
    ) -> None:
        """Only remembers."""
        self._session = session
        self._insert_receipts = insert_receipts
        self._learn = learn

    async def known(self, batch: Sequence[Ended]) -> dict[str, tuple[str, int | None]]:
        """See `Writer`."""
        return await booked_already(self._session, batch)

    async def insert_attempts(self, fresh: Sequence[Ended], *, journal_id: str) -> None:
        """See `Writer`."""
        await insert_attempts(self._session, fresh, journal_id=journal_id)

    async def locked(
        self, buckets: Sequence[Bucket], owner_id: str
    ) -> tuple[dict[Bucket, WindowState], dict[Bucket, SliceState]]:
        """See `Writer`."""
        windows = await locked_windows(self._session, buckets)
        return windows, await slices_of(self._session, owner_id, buckets)

    async def write(self, outcome: Outcome, *, now_ms: int) -> None:
        """See `Writer`."""
        session = self._session
        await write_transaction(
            session,
            outcome.journal_id,
            kind=USAGE_KIND,
            owed=outcome.owed,
            now_ms=now_ms,
            attempts=outcome.attempts,
            note=note_of(outcome.attempts),
        )
        if outcome.postings:
            await save_windows(session, outcome.windows)
            await save_slices(session, outcome.slices, may_be_new=False)
            await session.execute(insert(metadata.tables["budget_postings"]), outcome.postings)
        await insert_adding(session, SpendHour, outcome.hours)
        await insert_adding(session, SpendDay, days_of(outcome.hours))
        if outcome.receipts:
            await self._insert_receipts(session, outcome.receipts)

    async def learn(self, fresh: Sequence[Ended], *, now_ms: int) -> None:
        """See `Writer`."""
        await self._learn(self._session, fresh, now_ms)

    async def told(self, buckets: Sequence[Bucket]) -> set[tuple[Bucket, int]]:
        """See `Writer`."""
        table = metadata.tables["budget_alerts"].c
        found = await self._session.execute(
            select(table.budget_id, table.window_start_ms, table.percent).where(
                tuple_(table.budget_id, table.window_start_ms).in_(buckets)
            )
        )
        return {(Bucket(row[0], row[1]), row[2]) for row in found}

    async def tell(self, rows: list[dict[str, Any]]) -> None:
        """See `Writer`."""
        await insert_ignoring_duplicates(self._session, BudgetAlert, rows)


# ------------------------------------------------------------------------------------------- PostgreSQL
_HOUR: Final = metadata.tables["spend_hours"]
_HOUR_KEYS: Final = [column.name for column in _HOUR.primary_key]
_HOUR_SUMS: Final = [column.name for column in _HOUR.columns if not column.primary_key]
_HOUR_NAMES: Final = ", ".join([*_HOUR_KEYS, *_HOUR_SUMS])
_HOUR_TYPES: Final = ", ".join(
    f"{name} {'text' if name in _HOUR_KEYS and name != 'hour_start_ms' else 'bigint'}"
    for name in [*_HOUR_KEYS, *_HOUR_SUMS]
)
_HOUR_ADDED: Final = ", ".join(f"{name} = spend_hours.{name} + excluded.{name}" for name in _HOUR_SUMS)
_DAY_NAMES: Final = ", ".join(["day_start_ms", *_HOUR_KEYS[1:], *_HOUR_SUMS])
_DAY_ADDED: Final = ", ".join(f"{name} = spend_days.{name} + excluded.{name}" for name in _HOUR_SUMS)
_MS_PER_DAY: Final = 86_400_000
# Buckets are locked already, slices belong to whoever holds their bucket's lock, hours and then days (whose
# part nobody reads, so that PostgreSQL does it last) are locked in the order of their keys.
_WRITE: Final = f"""
WITH given AS (SELECT CAST(CAST($1 AS text) AS json) AS it),
booking AS (
  INSERT INTO journal_transactions (id, kind, at_ms, attempts, reverses, note)
  SELECT it->>'id', it->>'kind', (it->>'at_ms')::bigint, (it->>'attempts')::bigint, NULL, it->>'note'
  FROM given),
lines AS (
  INSERT INTO journal_entries (transaction_id, account, amount_usd_nanos)
  SELECT it->>'id', key, value::bigint FROM given, json_each_text(it->'owed')),
windows AS (
  UPDATE budget_windows SET posted_usd_nanos = new.posted, leased_usd_nanos = new.leased,
    unattributed_usd_nanos = new.unattributed, overage_usd_nanos = new.overage
  FROM given, json_to_recordset(it->'windows')
    AS new (budget_id text, start_ms bigint, posted bigint, leased bigint, unattributed bigint,
      overage bigint)
  WHERE budget_windows.budget_id = new.budget_id AND budget_windows.window_start_ms = new.start_ms),
slices AS (
  UPDATE budget_slices SET amount_usd_nanos = new.amount
  FROM given, json_to_recordset(it->'slices')
    AS new (budget_id text, start_ms bigint, owner_id text, amount bigint)
  WHERE budget_slices.budget_id = new.budget_id AND budget_slices.window_start_ms = new.start_ms
    AND budget_slices.owner_id = new.owner_id),
postings AS (
  INSERT INTO budget_postings
    (transaction_id, budget_id, window_start_ms, owner_id, amount_usd_nanos, overage_usd_nanos)
  SELECT transaction_id, budget_id, window_start_ms, owner_id, amount_usd_nanos, overage_usd_nanos
  FROM given, json_to_recordset(it->'postings')
    AS new (transaction_id text, budget_id text, window_start_ms bigint, owner_id text,
      amount_usd_nanos bigint, overage_usd_nanos bigint)),
days AS (
  INSERT INTO spend_days ({_DAY_NAMES})
  SELECT hour_start_ms - hour_start_ms % {_MS_PER_DAY}, {", ".join(_HOUR_KEYS[1:])},
    {", ".join(f"sum({name})" for name in _HOUR_SUMS)}
  FROM given, json_to_recordset(it->'hours') AS new ({_HOUR_TYPES})
  GROUP BY {", ".join(map(str, range(1, 9)))} ORDER BY {", ".join(map(str, range(1, 9)))}
  ON CONFLICT (day_start_ms, {", ".join(_HOUR_KEYS[1:])}) DO UPDATE SET {_DAY_ADDED})
INSERT INTO spend_hours ({_HOUR_NAMES})
SELECT {_HOUR_NAMES} FROM given, json_to_recordset(it->'hours') AS new ({_HOUR_TYPES})
ORDER BY {", ".join(_HOUR_KEYS)}
ON CONFLICT ({", ".join(_HOUR_KEYS)}) DO UPDATE SET {_HOUR_ADDED}
"""  # noqa: S608 - names of columns
_WINDOWS: Final = """
SELECT held.budget_id, held.window_start_ms, held.limit_usd_nanos, held.posted_usd_nanos,
  held.leased_usd_nanos, held.unattributed_usd_nanos, held.overage_usd_nanos, held.recall_number,
  budgets.is_hard, budgets.retired_at_ms, budgets.alert_percents::text
FROM budget_windows AS held JOIN budgets ON budgets.id = held.budget_id
WHERE (held.budget_id, held.window_start_ms) IN (SELECT * FROM unnest($1::text[], $2::bigint[]))
ORDER BY held.budget_id, held.window_start_ms FOR UPDATE OF held
"""
_SLICES: Final = """
SELECT budget_id, window_start_ms, owner_id, amount_usd_nanos, is_unattributed, recall_seen, expires_at_ms,
  journal_id
FROM budget_slices
WHERE owner_id = $3 AND (budget_id, window_start_ms) IN (SELECT * FROM unnest($1::text[], $2::bigint[]))
"""
_TOLD: Final = """
SELECT budget_id, window_start_ms, percent FROM budget_alerts
WHERE (budget_id, window_start_ms) IN (SELECT * FROM unnest($1::text[], $2::bigint[]))
"""
_TELL: Final = """
INSERT INTO budget_alerts (budget_id, window_start_ms, percent, at_ms, posted_usd_nanos)
VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING
"""

_encode = msgspec.json.Encoder().encode
_percents = msgspec.json.Decoder(list[int]).decode


class PostgresWriter:
    """By asyncpg (0.31), in a transaction of SQLAlchemy's that has begun."""

    def __init__(
        self,
        driver: Any,
        session: AsyncSession,
        insert_receipts: InsertReceipts,
        *,
        learn: Learn = learn_nothing,
    ) -> None:
        """Only remembers."""
        self._driver = driver
        self._session = session
        self._insert_receipts = insert_receipts
        self._learn = learn

    async def known(self, batch: Sequence[Ended]) -> dict[str, tuple[str, int | None]]:
        """See `Writer`."""
        with _told_as_sqlalchemy("SELECT attempts"):
            found = await self._driver.fetch(KNOWN_POSTGRESQL, *span_of(batch))
        return {attempt_id: (state, charge) for attempt_id, state, charge in found}

    async def insert_attempts(self, fresh: Sequence[Ended], *, journal_id: str) -> None:
        """See `Writer`."""
        with _told_as_sqlalchemy("COPY attempts"):
            try:
                await copy_attempts(self._driver, fresh, journal_id=journal_id)
            except asyncpg.UniqueViolationError:
                raise BookedMeanwhile from None

    async def locked(
        self, buckets: Sequence[Bucket], owner_id: str
    ) -> tuple[dict[Bucket, WindowState], dict[Bucket, SliceState]]:
        """See `Writer`."""
        ids, starts = [one.budget_id for one in buckets], [one.window_start_ms for one in buckets]
        with _told_as_sqlalchemy("SELECT budget_windows FOR UPDATE"):
            rows = await self._driver.fetch(_WINDOWS, ids, starts)
        if len(rows) == len(buckets):
            windows = {
                Bucket(row[0], row[1]): window_of((*tuple(row)[:10], _percents(row[10]))) for row in rows
            }
        else:  # one that nobody used yet is made
            windows = await locked_windows(self._session, buckets)
        # A statement of its own: what it sees must be younger than the lock.
        with _told_as_sqlalchemy("SELECT budget_slices"):
            found = await self._driver.fetch(_SLICES, ids, starts, owner_id)
        return windows, {Bucket(row[0], row[1]): SliceState(*tuple(row)[2:]) for row in found}

    async def write(self, outcome: Outcome, *, now_ms: int) -> None:
        """See `Writer`.

        Raises:
            ValueError: what is owed does not add up to zero.
        """
        if sum(outcome.owed.values()):
            raise ValueError(f"a booking that does not add up to zero: {outcome.owed}")
        document = {
            "id": outcome.journal_id,
            "kind": USAGE_KIND,
            "at_ms": now_ms,
            "attempts": outcome.attempts,
            "note": note_of(outcome.attempts),
            "owed": outcome.owed,
            "hours": outcome.hours,
            "windows": [
                {
                    "budget_id": bucket.budget_id,
                    "start_ms": bucket.window_start_ms,
                    "posted": state.posted_usd_nanos,
                    "leased": state.leased_usd_nanos,
                    "unattributed": state.unattributed_usd_nanos,
                    "overage": state.overage_usd_nanos,
                }
                for bucket, state in outcome.windows.items()
            ],
            "slices": [
                {
                    "budget_id": bucket.budget_id,
                    "start_ms": bucket.window_start_ms,
                    "owner_id": state.owner_id,
                    "amount": state.amount_usd_nanos,
                }
                for bucket, state in outcome.slices
            ],
            "postings": outcome.postings,
        }
        with _told_as_sqlalchemy("INSERT of a booking"):
            await self._driver.execute(_WRITE, _encode(document).decode())
            if outcome.receipts:
                await self._insert_receipts(self._driver, outcome.receipts)

    async def learn(self, fresh: Sequence[Ended], *, now_ms: int) -> None:
        """See `Writer`."""
        with _told_as_sqlalchemy("UPDATE learned"):
            await self._learn(self._driver, fresh, now_ms)

    async def told(self, buckets: Sequence[Bucket]) -> set[tuple[Bucket, int]]:
        """See `Writer`."""
        ids, starts = [one.budget_id for one in buckets], [one.window_start_ms for one in buckets]
        with _told_as_sqlalchemy("SELECT budget_alerts"):
            found = await self._driver.fetch(_TOLD, ids, starts)
        return {(Bucket(row[0], row[1]), row[2]) for row in found}

    async def tell(self, rows: list[dict[str, Any]]) -> None:
        """See `Writer`."""
        with _told_as_sqlalchemy("INSERT budget_alerts"):
            await self._driver.executemany(_TELL, [tuple(row.values()) for row in rows])


@contextlib.contextmanager
def _told_as_sqlalchemy(statement: str) -> Iterator[None]:
    """The driver's errors as those of SQLAlchemy, which callers know.

    Raises:
        StatementError: asyncpg refuses a value.
        DBAPIError: the database refuses it, or is away.
    """
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        # The last is what a connection says that the server has just ended and that does not know it yet.
        if isinstance(error, ValueError):  # asyncpg's own look at a value
            raise StatementError(str(error), statement, None, error) from error
        raise DBAPIError(statement, None, error) from error
    except OverflowError as error:
        raise StatementError(str(error), statement, None, error) from error
