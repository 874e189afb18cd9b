"""How does a running process learn that something changed? One channel for keys, prices, pools and policies.

Whoever changes something raises its topic's revision in the same transaction (`db.note_change`). Every
process compares revisions at short intervals, and on PostgreSQL a notice (LISTEN/NOTIFY, delivered when the
transaction commits) makes it look at once. The notice is only the faster way: a process that misses it,
behind a connection pooler for instance, still sees the change at its next look.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from gateway.clock import Clock
from gateway.db import NOTICE_CHANNEL, SessionFactory, database_ms, read_changes

Reload = Callable[[AsyncSession], Awaitable[None]]
"""Takes over what the database says about a topic now."""
Confirm = Callable[[], None]
"""Is told that the database was asked and nothing had changed."""

RECONNECT_S = 5.0
ANSWER_S = 2.0
"""How long the listener's connection may take to say that nothing changed."""
CLOCK_INTERVAL_S = 10.0
CLOCK_DOUBT_MS = 100
"""An answer that took longer is not used to set the clock."""

_REVISIONS = "SELECT topic, revision FROM changes"

_log = logging.getLogger(__name__)


class ChangeWatcher:
    """Keeps what is in memory as fresh as the database."""

    def __init__(
        self,
        engine: AsyncEngine,
        sessions: SessionFactory,
        *,
        poll_interval_s: float,
        clock: Clock | None = None,
    ) -> None:
        self._engine = engine
        self._sessions = sessions
        self._poll_interval_s = poll_interval_s
        self._clock = clock
        """Set by the database's clock, which all processes share, where there is one."""
        self._set_clock_at_s = 0.0
        self._topics: dict[str, tuple[Reload, Confirm]] = {}
        self._seen: dict[str, int] = {}
        self._look = asyncio.Event()
        self._is_stopping = False
        self.is_listening = False
        """Notices arrive."""
        self._driver: Any = None
        """asyncpg's connection (0.31) by which they do."""

    def watch(self, topic: str, reload: Reload, *, confirm: Confirm = lambda: None) -> None:
        """Call `reload` at the next look and whenever the topic changed, `confirm` when it did not."""
        self._topics[topic] = (reload, confirm)

    def stop(self) -> None:
        """End `run` after the look under way: a database call that is cut would leave its locks behind."""
        self._is_stopping = True
        self._look.set()

    async def refresh(self) -> None:
        """Look once.

        Raises:
            SQLAlchemyError, OSError: the database is away; what is in memory stays as it is.
        """
        if await self._is_unchanged():
            for _, confirm in self._topics.values():
                confirm()
            return
        async with self._sessions() as session:
            await self._set_clock(session)
            revisions = await read_changes(session)
            for topic, (reload, confirm) in self._topics.items():
                revision = revisions.get(topic, 0)
                if self._seen.get(topic) == revision:
                    confirm()
                    continue
                await reload(session)
                self._seen[topic] = revision

    async def _is_unchanged(self) -> bool:
        """Whether the listener's connection says so: a tenth of what a session costs, twice a second.

        False where there is none, where the clock is due, or where it cannot be asked: then a session is.
        """
        if self._driver is None or self._clock is None or self._clock.monotonic_s() >= self._set_clock_at_s:
            return False
        try:
            rows = await self._driver.fetch(_REVISIONS, timeout=ANSWER_S)
        except (
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,  # the server ended the connection, which does not know it yet
            OSError,
        ) as error:
            _log.debug("the listener's connection does not answer: %s", error)
            return False
        found = dict(map(tuple, rows))
        return all(self._seen.get(topic) == found.get(topic, 0) for topic in self._topics)

    async def _set_clock(self, session: AsyncSession) -> None:
        clock = self._clock
        if (
            clock is None
            or self._engine.dialect.name == "sqlite"
            or clock.monotonic_s() < self._set_clock_at_s
        ):
            return
        before_ms = clock.machine_ms()
        theirs_ms = await database_ms(session, clock)
        after_ms = clock.machine_ms()
        if after_ms - before_ms <= CLOCK_DOUBT_MS:  # a slow answer says little
            least, most = before_ms - theirs_ms - 1, after_ms - theirs_ms + 1
            if not least <= clock.ahead_ms <= most:  # what agrees as far as one can tell stays
                clock.ahead_ms = (least + most) // 2
            self._set_clock_at_s = clock.monotonic_s() + CLOCK_INTERVAL_S

    async def run(self) -> None:
        """Look at intervals and on notices until stopped; a database that is away is survived."""
        async with asyncio.TaskGroup() as group:
            listening = None
            if self._engine.dialect.name == "postgresql":
                listening = group.create_task(self._listen())
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._look.wait(), self._poll_interval_s)
                if self._is_stopping:
                    break
                self._look.clear()
                try:
                    await self.refresh()
                except (SQLAlchemyError, OSError) as error:
                    _log.warning("changes could not be read (known keys stay valid for a while): %s", error)
            if listening is not None:
                listening.cancel()

    async def _listen(self) -> None:
        """Hold a connection that wakes `run`; without one the intervals alone remain."""
        while True:
            try:
                await self._listen_once()
            except (SQLAlchemyError, OSError) as error:
                _log.warning(
                    "no change notices (looking every %g s instead): %s", self._poll_interval_s, error
                )
            self.is_listening = False
            await asyncio.sleep(RECONNECT_S)

    async def _listen_once(self) -> None:
        lost = asyncio.Event()
        async with self._engine.connect() as connection:
            # SQLAlchemy has no interface for notices: its driver's is used (asyncpg 0.31).
            driver: Any = (await connection.get_raw_connection()).driver_connection
            driver.add_termination_listener(lambda _: lost.set())
            await driver.add_listener(NOTICE_CHANNEL, lambda *_: self._look.set())
            self.is_listening, self._driver = True, driver
            self._look.set()  # for what changed while nobody listened
            try:
                await lost.wait()
            finally:
                self._driver = None
                # Not back into the pool: it listens.
                await connection.invalidate()
