"""Does a change reach a process by notice, and without one?"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from gateway.db import create_engine, note_change, session_factory
from gateway.freshness import ChangeWatcher
from gateway.migrate import upgrade
from tests.integration.gateway.databases import new_database
from tests.integration.gateway.rig import eventually

NEVER_S = 3600.0


class Book:
    """Counts how often it was reloaded and confirmed."""

    def __init__(self) -> None:
        self.reloads = 0
        self.confirmations = 0

    async def reload(self, session: AsyncSession) -> None:
        await session.execute(text("SELECT 1"))
        self.reloads += 1

    def confirm(self) -> None:
        self.confirmations += 1


@pytest.fixture
def database(postgres: str) -> Iterator[str]:
    with new_database(postgres) as url:
        upgrade(url)
        yield url


@pytest.fixture
async def engine(database: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database)
    yield engine
    await engine.dispose()


@contextlib.asynccontextmanager
async def watching(
    engine: AsyncEngine, *, poll_interval_s: float
) -> AsyncIterator[tuple[ChangeWatcher, Book]]:
    watcher = ChangeWatcher(engine, session_factory(engine), poll_interval_s=poll_interval_s)
    book = Book()
    watcher.watch("prices", book.reload, confirm=book.confirm)
    async with asyncio.TaskGroup() as group:
        group.create_task(watcher.run())
        try:
            yield watcher, book
        finally:
            watcher.stop()


async def change(url: str, topic: str, *, commit: bool = True) -> None:
    """What another process does."""
    engine = create_engine(url)
    async with session_factory(engine)() as session:
        await note_change(session, topic)
        if commit:
            await session.commit()
    await engine.dispose()


async def test_a_notice_is_enough(engine: AsyncEngine, database: str) -> None:
    async with watching(engine, poll_interval_s=NEVER_S) as (watcher, book):
        await eventually(lambda: watcher.is_listening and book.reloads == 1)
        await change(database, "prices")
        await eventually(lambda: book.reloads == 2)


async def test_another_topic_confirms_what_is_there(engine: AsyncEngine, database: str) -> None:
    async with watching(engine, poll_interval_s=NEVER_S) as (watcher, book):
        await eventually(lambda: watcher.is_listening and book.reloads == 1)
        await change(database, "policies")
        await eventually(lambda: book.confirmations)
        assert book.reloads == 1


async def test_what_is_rolled_back_was_never_told(engine: AsyncEngine, database: str) -> None:
    async with watching(engine, poll_interval_s=NEVER_S) as (watcher, book):
        await eventually(lambda: watcher.is_listening and book.reloads == 1)
        await change(database, "prices", commit=False)
        await change(database, "policies")  # arrives behind the other one, had that been sent
        await eventually(lambda: book.confirmations)
        assert book.reloads == 1


async def test_intervals_are_enough_too(tmp_path: object) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/changes.db"
    await asyncio.to_thread(upgrade, url)
    engine = create_engine(url)
    async with watching(engine, poll_interval_s=0.05) as (watcher, book):
        await eventually(lambda: book.reloads == 1)
        assert not watcher.is_listening
        await change(url, "prices")
        await eventually(lambda: book.reloads == 2)
    await engine.dispose()


async def test_a_listener_that_lost_its_connection_is_survived(engine: AsyncEngine, database: str) -> None:
    async with watching(engine, poll_interval_s=0.1) as (watcher, book):
        await eventually(lambda: watcher.is_listening and book.reloads == 1)
        await _cut_all_connections(database)
        await eventually(lambda: not watcher.is_listening)
        await change(database, "prices")
        await eventually(lambda: book.reloads == 2)


async def _cut_all_connections(url: str) -> None:
    engine = create_engine(url)
    async with engine.connect() as connection:
        await connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    await engine.dispose()
