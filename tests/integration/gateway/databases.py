"""How does a test get a PostgreSQL database of its own?"""

import asyncio
import contextlib
import secrets
from collections.abc import Iterator

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine


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


async def _execute(server: str, statement: str) -> None:
    engine = create_async_engine(server, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(statement))
    await engine.dispose()
