"""How do the spool's records reach the database?

Two loops: a group fsync, and batches of many rows in one statement. A database that is away only delays
them; nothing is dropped. On start-up the spools of dead processes are booked first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

from gateway.db import SessionFactory
from gateway.ledger.spool import Row, Spool
from gateway.ledger.store import insert_attempts
from gateway.settings import SpoolSettings

BACKOFF_S_MAX = 5.0

_log = logging.getLogger(__name__)


class Shipper:
    """Ships one spool to one database."""

    def __init__(self, spool: Spool, sessions: SessionFactory, settings: SpoolSettings) -> None:
        self._spool = spool
        self._sessions = sessions
        self._settings = settings
        self._stopping = asyncio.Event()
        self.failures = 0
        """Consecutive batches that the database did not take."""

    async def recover(self) -> int:
        """Book what dead processes left behind; returns how many attempts that were."""
        count = 0
        for path, rows in self._spool.recover():
            await self._book(rows)
            await asyncio.to_thread(Path.unlink, path, missing_ok=True)
            count += len(rows)
        if count:
            _log.warning("recovered %d attempts from the spools of processes that died", count)
        return count

    def stop(self) -> None:
        """Let `run` end after the batch that is under way.

        Cancelling it would cut a database call: the driver's connection would still hold its locks while
        the rest is shipped over another one.
        """
        self._stopping.set()

    async def run(self) -> None:
        """Ship until stopped or cancelled, then ship what is left."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._fsync_loop())
                tasks.create_task(self._ship_loop())
        finally:
            await asyncio.shield(self.drain())

    async def drain(self) -> None:
        """Ship all that has ended so far, or leave it to the next process if the database is away."""
        _fsync(self._spool.file_to_sync())
        try:
            while await self._ship_batch():
                pass
        except (SQLAlchemyError, OSError) as error:
            _log.warning(
                "%d usage records stay in the spool until the next start: %s",
                self._spool.unshipped_count,
                error,
            )

    async def _fsync_loop(self) -> None:
        while not await self._is_stopped_within(self._settings.fsync_interval_ms / 1000):
            if (descriptor := self._spool.file_to_sync()) is not None:
                await asyncio.to_thread(_fsync, descriptor)

    async def _ship_loop(self) -> None:
        interval_s = self._settings.ship_interval_ms / 1000
        while not await self._is_stopped_within(min(interval_s * 2 ** min(self.failures, 10), BACKOFF_S_MAX)):
            try:
                while await self._ship_batch() and not self._stopping.is_set():
                    pass
                self.failures = 0
            except (SQLAlchemyError, OSError) as error:
                self.failures += 1
                _log.warning("the database did not take a batch of usage records (will try again): %s", error)

    async def _is_stopped_within(self, wait_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), wait_s)
        return self._stopping.is_set()

    async def _ship_batch(self) -> int:
        rows = self._spool.next_batch(self._settings.batch_records_max)
        if rows:
            await self._book(rows)
            self._spool.acknowledge(len(rows))
        return len(rows)

    async def _book(self, rows: list[Row]) -> None:
        """Book the rows; one that the database refuses is set aside, so that it cannot hold up the others."""
        try:
            await self._insert(rows)
        except (StatementError, OverflowError) as error:
            if not _is_refusal(error):
                raise
        else:
            return
        for row in rows:
            try:
                await self._insert([row])
            except (StatementError, OverflowError) as error:
                if not _is_refusal(error):
                    raise
                _log.error("the database refuses the record of attempt %s: %s", row["attempt_id"], error)
                await asyncio.to_thread(self._spool.set_aside, row)

    async def _insert(self, rows: list[Row]) -> None:
        if not rows:
            return
        async with self._sessions() as session:
            await insert_attempts(session, rows)
            await session.commit()


def _is_refusal(error: StatementError | OverflowError) -> bool:
    """The values are the trouble, not the way to the database: trying again would not help."""
    if isinstance(error, OverflowError):  # sqlite3 raises it bare for an integer beyond 64 bits
        return True
    if isinstance(error, DataError | IntegrityError) or not isinstance(error, DBAPIError):
        return True
    # SQLSTATE classes 22 and 23: data exception, integrity violation (asyncpg's own are not told apart).
    return str(getattr(error.orig, "sqlstate", "") or "").startswith(("22", "23"))


def _fsync(descriptor: int | None) -> None:
    if descriptor is not None:
        os.fsync(descriptor)
        os.close(descriptor)
