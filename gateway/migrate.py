"""How does the database's schema become the one that this program needs?

Alembic does the work; its settings stand in pyproject.toml, its steps in `migrations/`.
"""

from __future__ import annotations

import asyncio

from alembic import command
from alembic.config import Config
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from gateway.append_only import protect
from gateway.db import create_engine
from gateway.schema import ROOT, unreachable


def alembic_config(url: str) -> Config:
    """Alembic's configuration for one database."""
    config = Config(toml_file=ROOT / "pyproject.toml")
    config.attributes["url"] = url
    return config


def upgrade(url: str, *, revision: str = "head", serving_url: str | None = None) -> None:
    """Bring the database up to `revision`, its books' rules in force. Not from within an event loop.

    Args:
        url: the owner's.
        revision: which.
        serving_url: what the gateway connects with; where that is another role, it gets the rights to serve.

    Raises:
        ConfigurationError: the database cannot be reached, or does not let us.
    """
    try:
        command.upgrade(alembic_config(url), revision)
        asyncio.run(_protect(url, _serving_role(url, serving_url)))
    except (SQLAlchemyError, OSError) as error:
        raise unreachable(make_url(url), error) from error


def _serving_role(url: str, serving_url: str | None) -> str | None:
    serving = None if serving_url is None else make_url(serving_url).username
    return None if serving == make_url(url).username else serving


async def _protect(url: str, serving_role: str | None) -> None:
    engine = create_engine(url)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(lambda sync: protect(sync, serving_role=serving_role))
    finally:
        await engine.dispose()


def downgrade(url: str, *, revision: str) -> None:
    """Take the database back to `revision`. Not from within an event loop."""
    command.downgrade(alembic_config(url), revision)
