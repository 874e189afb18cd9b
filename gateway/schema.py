"""Is the database's schema the one that this program needs?

One query, and a look at the names in `migrations/versions`. Alembic, which makes the schema
(`gateway.migrate`), is not loaded for that: it is slow to load, and every command and every gateway asks.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, Connection, inspect, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent


def head_revision() -> str:
    """The newest schema that this program knows: files are named by their revisions, which are numbered."""
    names = (path.name for path in (ROOT / "migrations" / "versions").glob("[0-9]*_*.py"))
    return max(names).partition("_")[0]


async def found_revision(engine: AsyncEngine) -> str | None:
    """The database's schema; None: it has no tables yet.

    Raises:
        ConfigurationError: the database cannot be reached; says why.
    """
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(_revision)
    except (SQLAlchemyError, OSError) as error:
        raise unreachable(engine.url, error) from error


async def require_current(engine: AsyncEngine) -> None:
    """Check that the schema is the newest.

    Raises:
        ConfigurationError: it is not, or the database cannot be reached; says what to do.
    """
    found, head = await found_revision(engine), head_revision()
    if found != head:
        state = "has no tables yet" if found is None else f"is at revision {found}"
        raise ConfigurationError(
            f"the database {state}, this program needs {head}: run `tollgate migrate` first"
        )


def unreachable(url: URL, error: Exception) -> ConfigurationError:
    """What to say of a database that does not let us."""
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    return ConfigurationError(f"the database cannot be used ({url.render_as_string()}): {reason}")


def _revision(connection: Connection) -> str | None:
    # Alembic's own table: one row, or none after the last migration was taken back.
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return found
