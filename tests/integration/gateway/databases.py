"""How does a test get a PostgreSQL database of its own?"""

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

_COLUMNS = (
    "SELECT c.relname, a.attname, a.atttypid::regtype::text, a.attnotnull FROM pg_attribute a"
    " JOIN pg_class c ON c.oid = a.attrelid"
    " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')"
    " AND a.attnum > 0 ORDER BY 1, 2"
)
_OTHERS = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
# As a replica: neither foreign keys nor triggers that keep rows from being deleted have a say.
_EMPTY = """
DO $$ DECLARE one regclass; BEGIN
  SET LOCAL session_replication_role = replica;
  FOR one IN SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
    AND relname <> 'alembic_version' LOOP EXECUTE 'DELETE FROM ' || one; END LOOP;
END $$
"""


@contextlib.contextmanager
def new_database(server: str, *, template: str = "template1") -> Iterator[str]:
    """A new database on a server; dropped at the end, whoever still uses it. Not from within an event loop.

    Args:
        server: address of a database that may create others.
        template: which database it is a copy of; nobody may be connected to that.
    """
    name = f"test_{secrets.token_hex(6)}"
    asyncio.run(_execute(server, f"CREATE DATABASE {name} TEMPLATE {template}"))
    try:
        yield f"{server.rpartition('/')[0]}/{name}"
    finally:
        asyncio.run(_execute(server, f"DROP DATABASE {name} WITH (FORCE)"))


class EmptyDatabases:
    """Copies of a migrated database: empty, and nobody is connected.

    They are used again, for a copy takes a third of a second; one whose tables a test has left changed is
    not. Not from within an event loop.
    """

    def __init__(self, server: str, template: str) -> None:
        """Take the address of a migrated, empty database on the server as the template.

        Raises:
            AssertionError: a migration fills a table, and emptying would take that away.
        """
        self._server = server
        self._template = template
        self._columns = asyncio.run(_execute(template, _COLUMNS))
        self._open = contextlib.ExitStack()
        self._spare: str | None = None
        for table in {str(row[0]) for row in self._columns} - {"alembic_version"}:
            counted = asyncio.run(_execute(template, f'SELECT count(*) FROM public."{table}"'))  # noqa: S608 - a name of ours
            assert counted == [(0,)], f"a migration fills {table}: keep its rows when the database is emptied"

    @contextlib.contextmanager
    def one(self) -> Iterator[str]:
        """One for a test."""
        url, self._spare = self._spare or self._new(), None
        try:
            yield url
        finally:
            asyncio.run(_execute(url, _OTHERS, _EMPTY))
            if asyncio.run(_execute(url, _COLUMNS)) == self._columns:
                self._spare = url

    def close(self) -> None:
        """Drop them all."""
        self._open.close()

    def _new(self) -> str:
        template = self._template.rpartition("/")[2]
        return self._open.enter_context(new_database(self._server, template=template))


async def _execute(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements, each by itself; the rows of the last one."""
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    rows: list[tuple[Any, ...]] = []
    try:
        async with engine.connect() as connection:
            for statement in statements:
                answer = await connection.execute(text(statement))
                rows = [tuple(row) for row in answer] if answer.returns_rows else []
    finally:
        await engine.dispose()
    return rows
