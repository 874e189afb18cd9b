"""How do we reach the database, and which columns do our tables share?

One engine, one session factory. SQLite runs in WAL mode with foreign keys on, so that the command line can
read while the gateway writes. `changes` is the channel by which every process learns that keys, tenants or
policies changed: a counter per topic, raised in the transaction that changes them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sqlalchemy import BigInteger, Column, Dialect, Executable, MetaData, String, event, func, select, text
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

from gateway.clock import Clock

NAMING = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
SQLModel.metadata.naming_convention = NAMING
metadata: MetaData = SQLModel.metadata

NOTICE_CHANNEL = "tollgate_changes"
"""PostgreSQL's NOTIFY channel for `changes`."""

SessionFactory = async_sessionmaker[AsyncSession]


class EpochMs(TypeDecorator[int]):
    """An instant as integer milliseconds since 1970 UTC: exact, sortable, the same on every database."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        """Refuse anything but an integer: a float would lose its meaning silently."""
        del dialect
        if value is not None and not isinstance(value, int):
            raise TypeError(f"an instant must be integer milliseconds, not {value!r}")
        return value


class Change(SQLModel, table=True):
    """One topic's revision; see the module's docstring."""

    __tablename__ = "changes"

    topic: str = Field(sa_column=Column(String(64), primary_key=True, comment="what changed, such as 'keys'"))
    revision: int = Field(
        sa_column=Column(BigInteger, nullable=False, comment="grows by one with every change")
    )


def create_engine(url: str) -> AsyncEngine:
    """An engine for `url`, set up for its database."""
    engine = create_async_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    if url.startswith("sqlite"):
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    del record
    cursor = connection.cursor()
    # A writer waits for the other instead of failing at once; WAL lets readers go on meanwhile.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def session_factory(engine: AsyncEngine) -> SessionFactory:
    """Sessions that keep their objects readable after a commit."""
    return async_sessionmaker(engine, expire_on_commit=False)


async def insert_ignoring_duplicates(
    session: AsyncSession, table: type[SQLModel], rows: Sequence[dict[str, Any]]
) -> None:
    """Insert the rows whose primary key is not there yet, many in one round trip."""
    if not rows:
        return
    statement = _insert_ignoring(str(table.__tablename__), session.get_bind().dialect.name)
    await session.execute(statement, list(rows))


# Statements are put together once: that takes longer than to run them.
@functools.cache
def _insert_ignoring(table: str, dialect: str) -> Executable:
    insert = postgresql_insert if dialect == "postgresql" else sqlite_insert
    # The table itself, not its class: the ORM would look at every value of every row.
    return insert(metadata.tables[table]).on_conflict_do_nothing()


_DATABASE_MS = text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")


async def database_ms(session: AsyncSession, clock: Clock) -> int:
    """Epoch milliseconds by the database's clock, which all processes share; SQLite has the machine's."""
    if session.get_bind().dialect.name == "sqlite":
        return clock.epoch_ms()
    found = await session.execute(_DATABASE_MS)
    return int(found.scalar_one())


async def begin_writing(session: AsyncSession) -> None:
    """Take SQLite's one write lock before reading what the transaction will change.

    SQLite cannot turn a reader into a writer once another one has written. PostgreSQL locks rows.
    """
    if session.get_bind().dialect.name == "sqlite":
        await session.execute(text("UPDATE changes SET revision = revision WHERE topic = ''"))


_NOTHING = text("SELECT 1")


async def driver_of(session: AsyncSession) -> Any:
    """The driver's own connection (asyncpg 0.31) in the session's transaction.

    The transaction is SQLAlchemy's, which begins it with the first statement: there is one.
    """
    await session.execute(_NOTHING)
    connection = await session.connection()
    return (await connection.get_raw_connection()).driver_connection


class KeptConnection:
    """A connection to PostgreSQL that is kept, for transactions that come several times a second.

    A session of the pool costs 1.5 ms of this process's CPU each time, before its first statement. One
    transaction at a time.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        """Only remembers."""
        self._engine = engine
        self._connection: AsyncConnection | None = None
        self._driver: Any = None

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[tuple[AsyncSession, Any, int]]:
        """A session, asyncpg's connection and the database's time (epoch ms) in one transaction; committed.

        Raises:
            SQLAlchemyError, OSError: the database is away, or refuses to commit.
        """
        connection = await self._open()
        try:
            now_ms = int((await connection.execute(_DATABASE_MS)).scalar_one())  # it begins with this
            async with AsyncSession(bind=connection, expire_on_commit=False) as session:
                yield session, self._driver, now_ms
            await connection.commit()
        except BaseException:
            # Whatever it was: a connection in an unknown state is not used again.
            await self._drop()
            raise

    async def _open(self) -> AsyncConnection:
        if self._connection is not None and self._driver.is_closed():
            await self._drop()
        if self._connection is None:
            self._connection = await self._engine.connect()
            self._driver = (await self._connection.get_raw_connection()).driver_connection
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection, self._driver = self._connection, None, None
        if connection is not None:
            await connection.invalidate()
            await connection.close()

    async def close(self) -> None:
        """Give it back; the next transaction takes another one."""
        connection, self._connection, self._driver = self._connection, None, None
        if connection is not None:
            await connection.close()


async def insert_adding(session: AsyncSession, table: type[SQLModel], rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows; where one of its key is there, add to its other columns."""
    if not rows:
        return
    statement = _insert_adding(str(table.__tablename__), session.get_bind().dialect.name)
    await session.execute(statement, list(rows))


@functools.cache
def _insert_adding(table: str, dialect: str) -> Executable:
    insert = postgresql_insert if dialect == "postgresql" else sqlite_insert
    plain = metadata.tables[table]
    statement = insert(plain)
    keys = {column.name for column in plain.primary_key}
    return statement.on_conflict_do_update(
        index_elements=sorted(keys),
        set_={
            column.name: column + statement.excluded[column.name]
            for column in plain.columns
            if column.name not in keys
        },
    )


async def note_change(session: AsyncSession, topic: str) -> None:
    """Raise the topic's revision within the caller's transaction; processes are told when it commits."""
    dialect = session.get_bind().dialect.name
    insert = postgresql_insert if dialect == "postgresql" else sqlite_insert
    statement = insert(Change).values(topic=topic, revision=1)
    revision = metadata.tables["changes"].c.revision
    await session.execute(
        statement.on_conflict_do_update(index_elements=["topic"], set_={"revision": revision + 1})
    )
    if dialect == "postgresql":
        await session.execute(select(func.pg_notify(NOTICE_CHANNEL, topic)))


async def read_changes(session: AsyncSession) -> dict[str, int]:
    """Every topic's revision."""
    table = metadata.tables["changes"]
    rows = await session.execute(select(table.c.topic, table.c.revision))
    return {topic: revision for topic, revision in rows}  # noqa: C416 - dict() cannot be typed from rows
