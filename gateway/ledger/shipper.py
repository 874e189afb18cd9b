"""How do the spool's records reach the database?

In batches, each booked in one transaction. A database that is away only delays them; nothing is dropped. On
start-up the spools of dead processes are booked first, and what was lent to those processes is given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from gateway.clock import Clock
from gateway.db import KeptConnection, SessionFactory, database_ms
from gateway.ledger.buckets import Bucket
from gateway.ledger.budgets import Holds
from gateway.ledger.group_sync import GroupSync, fsync_and_close
from gateway.ledger.owners import close_owner
from gateway.ledger.posting import Booked, book, charges_by_bucket
from gateway.ledger.records import Ended
from gateway.ledger.spool import Left, Spool
from gateway.ledger.store import BookedMeanwhile
from gateway.ledger.writers import InsertReceipts, Learn, learn_nothing
from gateway.money import usd_text
from gateway.settings import SpoolSettings

BACKOFF_S_MAX = 5.0

_log = logging.getLogger(__name__)


class Shipper:
    """Ships one spool to one database."""

    def __init__(
        self,
        spool: Spool,
        sessions: SessionFactory,
        settings: SpoolSettings,
        *,
        clock: Clock,
        insert_receipts: InsertReceipts,
        learn: Learn = learn_nothing,
        holds: Holds | None = None,
        books: asyncio.Lock | None = None,
    ) -> None:
        self._spool = spool
        self._sessions = sessions
        self._settings = settings
        self._clock = clock
        self._insert_receipts = insert_receipts
        self._learn = learn
        self._holds = holds or Holds()
        self._books = books or asyncio.Lock()
        engine: AsyncEngine = sessions.kw["bind"]
        self._kept = KeptConnection(engine) if engine.dialect.name == "postgresql" else None
        self._is_running = False
        self._stopping = asyncio.Event()
        self.failures = 0
        """Consecutive batches that the database did not take."""
        self.alerts = 0
        """Shares of budgets that were used up."""
        self.overage_usd_nanos = 0
        """Booked here beyond what was lent."""
        self.contradictions = 0
        """Attempts that came with two different ends."""

    async def recover(self) -> int:
        """Book what dead processes left behind; returns how many attempts that were."""
        count = 0
        for left in self._spool.recover():
            await self._recover(left)
            await asyncio.to_thread(Path.unlink, left.path, missing_ok=True)
            count += len(left.ended)
        if count:
            _log.warning("recovered %d attempts from the spools of processes that died", count)
        return count

    async def _recover(self, left: Left) -> None:
        size = self._settings.batch_records_max
        for index in range(0, len(left.ended), size):
            await self._book(left.ended[index : index + size], left.owner_id)
        async with self._books, self._sessions() as session:
            now_ms = await database_ms(session, self._clock)
            await close_owner(session, left.owner_id, now_ms=now_ms)
            await session.commit()

    def stop(self) -> None:
        """Let `run` end after the batch that is under way.

        Cancelling it would cut a database call: the driver's connection would still hold its locks while
        the rest is shipped over another one.
        """
        self._stopping.set()

    async def run(self) -> None:
        """Ship until stopped or cancelled, then ship what is left."""
        syncing = GroupSync(self._spool, interval_s=self._settings.fsync_interval_ms / 1000)
        self._is_running = True
        try:
            syncing.start()
            await self._ship_loop()
        finally:
            await asyncio.shield(self._finish(syncing))

    async def _finish(self, syncing: GroupSync) -> None:
        try:
            await syncing.stop()
            await self.drain()
        finally:
            self._is_running = False
            if self._kept is not None:
                await self._kept.close()

    async def drain(self) -> None:
        """Ship all that has ended so far, or leave it to the next process if the database is away."""
        with contextlib.suppress(OSError):  # what cannot be synced can still be shipped
            fsync_and_close(self._spool.file_to_sync())
        try:
            while await self._ship_batch():
                pass
        except (SQLAlchemyError, OSError, BookedMeanwhile) as error:
            _log.warning(
                "%d usage records stay in the spool until the next start: %s",
                self._spool.unshipped_count,
                error,
            )

    async def _ship_loop(self) -> None:
        interval_s, full = self._settings.ship_interval_ms / 1000, self._settings.batch_records_max
        while not await self._is_stopped_within(min(interval_s * 2 ** min(self.failures, 10), BACKOFF_S_MAX)):
            try:
                # What came while a batch was booked waits for the next one: a batch costs as much as the
                # records of a second at 100 requests/s.
                while await self._ship_batch() == full and not self._stopping.is_set():
                    pass
                self.failures = 0
            except (SQLAlchemyError, OSError, BookedMeanwhile) as error:
                self.failures += 1
                _log.warning("the database did not take a batch of usage records (will try again): %s", error)

    async def _is_stopped_within(self, wait_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), wait_s)
        return self._stopping.is_set()

    async def _ship_batch(self) -> int:
        batch = self._spool.next_batch(self._settings.batch_records_max)
        if batch:
            async with self._books:
                booked = await self._book(batch, self._spool.owner_id)
                self._holds.booked(charges_by_bucket(batch), booked)
            self._spool.acknowledge(len(batch))
        return len(batch)

    async def _book(self, batch: list[Ended], owner_id: str) -> dict[Bucket, int]:
        """Book a batch; one that the database refuses is set aside, so that it cannot hold up the others.

        Returns what is left of the owner's slices.
        """
        try:
            return await self._book_at_once(batch, owner_id)
        except (StatementError, OverflowError) as error:
            if not _is_refusal(error):
                raise
        left: dict[Bucket, int] = {}
        for ended in batch:
            try:
                left.update(await self._book_at_once([ended], owner_id))
            except (StatementError, OverflowError) as error:
                if not _is_refusal(error):
                    raise
                attempt_id = ended.start.attempt_id
                _log.error("the database refuses the record of attempt %s: %s", attempt_id, error)
                await asyncio.to_thread(self._spool.set_aside, ended, reason=str(error))
        return left

    async def _book_at_once(self, batch: list[Ended], owner_id: str) -> dict[Bucket, int]:
        # Each race that is lost means that somebody else has booked at least one of them.
        for race in range(len(batch) + 1):
            try:
                async with self._transaction() as (session, driver, now_ms):
                    booked = await book(
                        session,
                        batch,
                        owner_id=owner_id,
                        now_ms=now_ms,
                        insert_receipts=self._insert_receipts,
                        learn=self._learn,
                        driver=driver,
                    )
            except BookedMeanwhile:
                if race == len(batch):
                    raise
            else:
                await self._tell(booked)
                return booked.slices
        raise AssertionError  # not reached

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncIterator[tuple[AsyncSession, Any, int]]:
        """Where a batch is booked: a session, asyncpg's connection where there is one, and the time."""
        if self._kept is not None:
            async with self._kept.transaction() as found:
                yield found
            if not self._is_running:  # nobody would close it
                await self._kept.close()
            return
        async with self._sessions() as session:
            yield session, None, await database_ms(session, self._clock)
            await session.commit()

    async def _tell(self, booked: Booked) -> None:
        self.overage_usd_nanos += booked.overage_usd_nanos
        for alert in booked.alerts:
            self.alerts += 1
            _log.warning(
                "budget %s: %d %% of %s USD used (%s USD)",
                alert.bucket.budget_id,
                alert.percent,
                usd_text(alert.limit_usd_nanos),
                usd_text(alert.posted_usd_nanos),
            )
        for ended, reason in booked.contradictions:
            self.contradictions += 1
            _log.error("attempt %s came with two ends: %s", ended.start.attempt_id, reason)
            await asyncio.to_thread(self._spool.set_aside, ended, reason=reason)


def _is_refusal(error: StatementError | OverflowError) -> bool:
    """The values are the trouble, not the way to the database: trying again would not help."""
    if isinstance(error, OverflowError):  # sqlite3 raises it bare for an integer beyond 64 bits
        return True
    if isinstance(error, DataError | IntegrityError) or not isinstance(error, DBAPIError):
        return True
    # SQLSTATE classes 22 and 23: data exception, integrity violation (asyncpg's own are not told apart).
    return str(getattr(error.orig, "sqlstate", "") or "").startswith(("22", "23"))
